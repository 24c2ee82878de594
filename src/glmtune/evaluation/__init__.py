"""How good is it, and is it better than before? Losses, metrics of generated answers, multiple choice, forgetting.

Base and adapter answer the same rows, so every difference is paired, and has an interval (`measures.py`).
"""
