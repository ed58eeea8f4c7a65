"""Port PyTorch training to JAX, and prove that it trains the same."""
