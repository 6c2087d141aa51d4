"""`loraplex doctor`: what a machine lacks to serve with the given settings, and what to do."""
