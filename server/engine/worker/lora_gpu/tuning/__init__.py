"""Measures tile sizes on a GPU (`loraplex tune`)."""
