"""Rows made readable: terminal tables, charts, one self-contained page."""
