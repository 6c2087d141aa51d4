"""Runs one training job: the method, the loop and the record."""
