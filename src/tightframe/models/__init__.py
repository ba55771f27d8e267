"""Backbones, wherever they come from."""
