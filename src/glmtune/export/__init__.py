"""Exports a run as a model folder that plain transformers loads."""
