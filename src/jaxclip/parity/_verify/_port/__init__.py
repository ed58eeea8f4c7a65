"""The port: what the user says of it, and its model in the forms that there are."""
