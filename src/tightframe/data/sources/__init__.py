"""Sources of labeled images other than a folder: each a function from what the user names to ``Gathered``."""
