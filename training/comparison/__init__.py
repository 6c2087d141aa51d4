"""The experiment that compares methods on one's own data."""
