"""What is the same, or nearly: normal forms of texts, near-duplicates by MinHash, and groups of them."""
