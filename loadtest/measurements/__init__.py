"""Measurements written in Python, one a module."""
