"""A run's rows as a Hugging Face DatasetDict with its card."""
