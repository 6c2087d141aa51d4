"""Bounds the cost of grammars for structured output, and tries whether they compile in time."""
