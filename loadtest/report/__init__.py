"""What is reported of a run: measures, tables, plots, comparisons."""
