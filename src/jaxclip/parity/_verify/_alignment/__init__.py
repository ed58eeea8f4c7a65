"""Which array of a recording is which of a port."""
