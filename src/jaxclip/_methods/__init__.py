"""The methods of the field, one to a module.

Those that learn from the gradients so far let no step with a NaN or infinite element
into what they have learned.
"""
