"""Builds the embedded demo base: corpus, tokenizer, model. `tools/build_tiny_base.py` is the way in."""
