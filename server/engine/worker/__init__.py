"""Code that runs inside the engine's processes, together with vLLM's worker."""
