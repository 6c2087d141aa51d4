"""What stands beside an adapter's weights, compared with the base's."""
