"""LoRA fine-tuning on Ray Train."""
