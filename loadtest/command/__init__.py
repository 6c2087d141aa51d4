"""What the commands of `loraplex loadtest` do once their arguments are read."""
