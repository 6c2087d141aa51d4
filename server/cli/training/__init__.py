"""The commands that train, evaluate and convert. They import the training package when called."""
