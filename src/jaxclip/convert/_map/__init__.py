"""The map between names: what it is, how it is printed, and how it is kept."""
