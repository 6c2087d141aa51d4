"""The commands that train, evaluate and convert; they import the training package when called."""
