"""Where a value decides, and what rounding makes of that."""
