"""What the modules of a port return, and what it asks for, while it is traced."""
