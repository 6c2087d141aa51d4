"""Training data: conversations, data sets, recipes."""
