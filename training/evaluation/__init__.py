"""Scores models and adapters on held-out conversations."""
