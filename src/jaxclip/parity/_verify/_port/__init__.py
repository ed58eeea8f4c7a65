"""The port: its model, how it is called, and its dropout."""
