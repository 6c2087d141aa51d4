"""Pages of the console: trying models, and what was used, changed and measured."""
