"""From a folder or a hub id to a base, a tokenizer or a whole run."""
