"""A run for people and programs: measures, tables, plots, comparisons."""
