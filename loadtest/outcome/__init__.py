"""How each request ended, and whether its answer is right."""
