"""What runs inside the engine's processes, beside vLLM's worker."""
