"""Execute the notebooks anew and keep their outputs.

Usage: ``python scripts/execute_notebooks.py [NOTEBOOK ...]``, by default all of
notebooks/. A notebook that fails is left as it was.
"""

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from rich.progress import track
from traitlets.config import Config

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"

# The kernel warns of listeners on its sockets, unless they are encrypted.
ENCRYPTED = Config(KernelManager={"transport_encryption": "auto"})


def execute(notebook: nbformat.NotebookNode) -> None:
    """Execute a notebook in place, in a fresh kernel of this environment."""
    NotebookClient(
        notebook,
        config=ENCRYPTED,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(NOTEBOOKS)}},
        record_timing=False,
        coalesce_streams=True,
    ).execute()
    # What changes from machine to machine would be noise in every commit.
    notebook.metadata.pop("language_info", None)


def main() -> int:
    """Execute the notebooks that are named, or all; write each whole, or not at all."""
    paths = [Path(name) for name in sys.argv[1:]] or sorted(NOTEBOOKS.glob("*.ipynb"))
    for path in track(paths, description="Executing notebooks"):
        notebook = nbformat.read(path, as_version=4)
        execute(notebook)
        fresh = path.with_suffix(".tmp")
        nbformat.write(notebook, fresh)
        os.replace(fresh, path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
