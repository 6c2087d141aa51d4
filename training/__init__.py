"""Makes adapters: data, recipes, training, evaluation. Knows nothing of the server or of vLLM."""
