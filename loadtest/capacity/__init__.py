"""Simulates what other settings would do, with times fitted to a measured run."""
