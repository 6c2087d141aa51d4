"""The gate: a registered version is checked and tried before it may serve."""
