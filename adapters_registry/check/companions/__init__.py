"""Compares the files beside an adapter's weights with the base's."""
