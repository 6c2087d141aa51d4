"""Records what happened to each request: in memory for an hour, and as log lines."""
