"""What torch drew at random, given to the port in place of what it draws."""
