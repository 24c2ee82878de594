"""Training a LoRA adapter with transformers' Trainer."""
