"""How metrics and their differences are written, on the terminal and in reports."""

from glmtune.evaluation.measures import Difference

# In this order: the name of a metric, what it is called, and how it is written.
METRICS = (
    ("loss", "loss", "{:.4f}"),
    ("perplexity", "perplexity", "{:,.2f}"),
    ("rouge-1", "ROUGE-1", "{:.2f}"),
    ("rouge-2", "ROUGE-2", "{:.2f}"),
    ("rouge-l", "ROUGE-L", "{:.2f}"),
    ("bleu-4", "BLEU-4", "{:.2f}"),
    ("exact_match", "exact match, %", "{:.1f}"),
    ("hits", "reference in the answer, %", "{:.1f}"),
    ("accuracy", "accuracy, %", "{:.1f}"),
    ("ended", "ended by itself, %", "{:.1f}"),
    ("length", "characters per answer", "{:.1f}"),
    ("repetition", "repetition, %", "{:.1f}"),
    ("distinct-1", "distinct-1, %", "{:.1f}"),
    ("distinct-2", "distinct-2, %", "{:.1f}"),
)


def say_difference(found: Difference, form: str) -> str:
    """A difference with its interval; ~ marks one that may be noise."""
    signed = form.replace("{:", "{:+")
    mark = "" if found.is_clear else "~ "
    return f"{mark}{signed.format(found.value)} [{signed.format(found.low)}, {signed.format(found.high)}]"
