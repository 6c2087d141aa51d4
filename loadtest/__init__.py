"""Load testing over HTTP; imports nothing else of this project."""
