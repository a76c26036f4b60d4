"""Lighter networks that learn from a teacher (papers 001, 002 and 003)."""
