"""The base and the adapter on it: loading, checking, saving."""
