"""What a tuned model is used for."""
