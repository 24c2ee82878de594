"""LoRA through PEFT: adapters, their files, and the folders of runs."""
