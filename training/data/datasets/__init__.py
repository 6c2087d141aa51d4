"""The openly licensed data that the recipes train on, made from what packages ship."""
