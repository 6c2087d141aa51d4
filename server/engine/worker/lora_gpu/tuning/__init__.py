"""Measures tile sizes on a card: `loraplex tune`."""
