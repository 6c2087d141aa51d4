"""The static check: what is refused from an adapter's files alone."""
