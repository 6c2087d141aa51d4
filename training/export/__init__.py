"""Adapters become whole models, or one adapter."""
