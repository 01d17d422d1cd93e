"""Writes results.json and results.png from finished runs."""
