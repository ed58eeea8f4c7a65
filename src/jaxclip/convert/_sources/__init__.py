"""Where weights come from: modules, state dicts and files, each kind in a module."""
