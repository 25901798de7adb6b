"""Label probabilities before and after tuning, and what they are worth."""
