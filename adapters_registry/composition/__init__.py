"""Compositions: weighted sums of versions, which become versions themselves."""
