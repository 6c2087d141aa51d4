"""Openly licensed data sets for the recipes, made from files that packages ship."""
