"""The way into the data plane: bodies are counted, decoded, bounded and validated."""
