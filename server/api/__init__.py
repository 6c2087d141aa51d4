"""The HTTP routes: inference, the list of models, operations, and the admin API."""
