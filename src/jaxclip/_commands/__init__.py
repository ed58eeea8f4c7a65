"""The subcommands of `jaxclip`, one module for each.

Each has a function that adds its parser, and sets as its ``run`` a function from the
parsed arguments to the exit status. Whatever it needs beyond the root package it
imports when it runs, so that the other subcommands work without it.
"""
