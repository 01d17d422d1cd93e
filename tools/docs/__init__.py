"""Writes tables, figures and the API reference of the documentation."""
