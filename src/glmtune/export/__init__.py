"""From a run to a folder that loads anywhere."""
