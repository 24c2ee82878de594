"""From data files to batches: reading, tokenising, packing and inspecting."""
