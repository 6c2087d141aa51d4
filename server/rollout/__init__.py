"""Rollouts: warm promotions, and canaries that are judged."""
