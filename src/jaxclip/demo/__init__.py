"""What `jaxclip demo` runs; its modules need torch, flax, rich and matplotlib."""
