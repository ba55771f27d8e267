"""Classifiers read off features: what they get right while held out."""
