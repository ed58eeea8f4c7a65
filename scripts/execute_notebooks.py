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

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def execute(path: Path) -> None:
    """Execute one notebook and write it whole, or not at all."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        record_timing=False,
    )
    client.execute()
    # What changes from machine to machine would be noise in every commit.
    notebook.metadata.pop("language_info", None)
    fresh = path.with_suffix(".tmp")
    nbformat.write(notebook, fresh)
    os.replace(fresh, path)


def main() -> int:
    """Execute the notebooks that are named, or all."""
    paths = [Path(name) for name in sys.argv[1:]] or sorted(NOTEBOOKS.glob("*.ipynb"))
    for path in track(paths, description="Executing notebooks"):
        execute(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
