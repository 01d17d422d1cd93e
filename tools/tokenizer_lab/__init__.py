"""Compares tokenizers on texts, and looks for pieces that no text trains."""
