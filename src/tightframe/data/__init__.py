"""Images and their labels, wherever they come from."""
