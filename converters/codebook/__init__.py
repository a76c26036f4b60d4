"""Pass: the layers of two networks share codebooks (co-compress, paper 000)."""
