"""The experiment that compares training methods on the user's own data."""
