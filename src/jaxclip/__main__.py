"""`python -m jaxclip` is the `jaxclip` command."""

import sys

from jaxclip.cli import main

if __name__ == "__main__":
    sys.exit(main())
