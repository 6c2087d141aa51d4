"""The commands of `loraplex loadtest` once their arguments are read."""
