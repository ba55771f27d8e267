"""Published transferability scores."""
