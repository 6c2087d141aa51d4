"""Keeps adapters: their records, content and checks. It uses neither torch, vLLM nor HTTP."""
