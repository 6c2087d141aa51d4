"""Grammars for structured output: what one may cost, and whether it compiles in time."""
