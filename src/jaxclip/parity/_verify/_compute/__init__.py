"""A recorded step as the port computes it, in several precisions."""
