"""What is worth a look in valid data: nothing here stops a run, and a careful person would agree with each of them."""

from glmtune.data.findings.finding import Finding
from glmtune.data.findings.search import find, find_in_tokens, find_leaks

__all__ = ["Finding", "find", "find_in_tokens", "find_leaks"]
