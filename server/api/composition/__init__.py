"""Compositions over HTTP: by a route, and by a request whose `model` names the parts."""
