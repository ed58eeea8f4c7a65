"""A recorded step held against the port, stage by stage."""
