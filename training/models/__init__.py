"""Loads, checks and saves bases and adapters."""
