"""Decides, before anything is loaded, how a run is to go."""
