"""The network architectures, as PyTorch modules."""
