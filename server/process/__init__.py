"""The server process: start, signals, draining, exit."""
