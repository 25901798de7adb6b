"""From prompts or raw conversations to a tuned model, on Ray."""
