"""How the variables of each type of Flax module lie in torch: one rule for each type.

`links` says what a rule is, `registry` finds the one for a type, and each of the other
modules holds the rules of a family of layers.
"""
