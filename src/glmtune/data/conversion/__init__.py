"""Questions into instructions with an input, and back, by rules."""
