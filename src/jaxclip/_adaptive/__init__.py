"""Transformations that learn from the gradients so far what to clip the next ones to.

One method to a module. None of them lets a step with a NaN or infinite element into
what it has learned.
"""
