"""The PyTorch reference that the JAX side is held against."""
