"""What adapters exist: records, content, checks. Knows no torch, no vLLM, no HTTP."""
