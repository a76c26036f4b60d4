"""Pass: merge two networks of one architecture block by block (paper 004)."""
