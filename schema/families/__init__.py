"""Typed queries and triggers of the families, one module each."""
