"""Carries out a run against a server over HTTP."""
