"""What a model or adapter is worth on held-out conversations."""
