"""One running engine: calls to it, what its requests cost, and whether it makes progress."""
