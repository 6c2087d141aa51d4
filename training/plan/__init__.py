"""Computes the memory, time and cost of training and serving in advance."""
