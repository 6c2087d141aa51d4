"""Merges an adapter into its base, and combines several adapters into one."""
