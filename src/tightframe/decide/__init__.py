"""Choosing layers and models from evidence."""
