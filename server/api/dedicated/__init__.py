"""A dedicated server: it answers for one version of one adapter, whose weights are its base's."""
