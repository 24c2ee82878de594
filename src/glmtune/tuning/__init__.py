"""Adapters on a base model: attaching, saving, loading, and what a run folder remembers."""
