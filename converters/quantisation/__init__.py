"""Passes: weights as indices into a dictionary of values (paper 003)."""
