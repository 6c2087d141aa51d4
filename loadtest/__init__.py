"""Tests servers under load over HTTP. It imports no other package of this project."""
