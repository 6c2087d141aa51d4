"""Adapter files by their digest: on the local disk, and at the origin."""
