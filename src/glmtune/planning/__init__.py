"""Chooses a run's settings before anything is loaded."""
