"""Adapting a backbone: what is trained, the skip connection, the loop, the saved folder."""
