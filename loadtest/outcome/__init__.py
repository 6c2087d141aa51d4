"""What became of each request, and whether its answer is right."""
