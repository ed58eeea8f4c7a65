"""Optimizers, their schedules and their state, between torch and Optax."""
