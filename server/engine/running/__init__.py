"""One running engine: the calls to it, the cost of its requests, and its progress."""
