"""What the clips are made of: arguments, leaves, sums, scaling, the mesh."""
