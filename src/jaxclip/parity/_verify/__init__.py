"""Verifying a port of training against the recording of a run."""
