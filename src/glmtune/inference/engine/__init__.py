"""Continuous batching: many requests share each step of one model, with a key-value cache in blocks."""
