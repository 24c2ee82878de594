"""From data files to batches: reading, tokenising, padding, and looking at what comes out."""
