"""One training run: method, loop, record."""
