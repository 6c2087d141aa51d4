"""The whole load, decided before it starts."""
