"""Graphs of the runtime as PyTorch modules, and ways to rewrite them that keep their outputs."""
