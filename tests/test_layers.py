"""Which room may import which: the table that keeps the package in layers."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"

# Rooms, each with the rooms and distributions that it may import. A room is a module
# or a folder of jaxclip, a folder in one that has a row of its own, or another package;
# "root" is jaxclip/__init__.py. What imports "torch (lazily)" does so inside functions
# alone.
MAY_IMPORT = {
    "_core": {"jax", "numpy", "optax"},
    "_norms": {"_core", "jax", "numpy"},
    "_clip_grad": {"_core", "_norms", "jax"},
    "_monitoring": {"_core", "jax", "optax"},
    "_clipping": {"_clip_grad", "_core", "_monitoring", "_norms", "jax", "optax"},
    "_methods": {
        "_clip_grad",
        "_clipping",
        "_core",
        "_monitoring",
        "_norms",
        "jax",
        "numpy",
        "optax",
    },
    "_guards": {"_core", "_monitoring", "_norms", "jax", "optax"},
    "_spikes": {"_core", "_guards", "_monitoring", "_norms", "jax", "optax"},
    "_plotting": {"_monitoring", "jax", "matplotlib (lazily)", "numpy"},
    "root": {
        "_clip_grad",
        "_clipping",
        "_core",
        "_guards",
        "_methods",
        "_monitoring",
        "_norms",
        "_plotting",
        "_spikes",
    },
    "_arrays": {"jax", "numpy", "torch (lazily)"},
    "models": {"flax", "jax"},
    "optim": {"_core", "_guards", "jax", "numpy", "optax"},
    "_files": set(),
    "_safetensors": {"_files", "jax", "numpy"},
    "convert": {
        "_arrays",
        "_core",
        "_files",
        "_safetensors",
        "flax",
        "jax",
        "models",
        "numpy",
        "optax",
        "optim",
        "safetensors",
        "torch (lazily)",
    },
    "parity": {
        "_arrays",
        "_files",
        "_safetensors",
        "convert",
        "flax",
        "jax",
        "numpy",
        "optax",
        "parity._html",
        "parity._torch (lazily)",
        "rich (lazily)",
        "root",
    },
    "parity._html": {"parity"},
    "parity.pytest_plugin": {"parity", "pytest"},
    "parity._torch": {"_arrays", "jax", "numpy", "parity", "root", "torch"},
    "demo": {
        "_files",
        "convert",
        "flax",
        "jax",
        "matplotlib",
        "models",
        "numpy",
        "optax",
        "parity",
        "rich",
        "root",
        "torch",
        "torchref",
    },
    "_commands": {"_safetensors", "convert", "demo", "flax", "parity", "rich", "root"},
    "cli": {"_commands", "root"},
    "__main__": {"cli"},
    "torchref": {"numpy", "torch"},
}


def modules() -> list[Path]:
    return sorted(SRC.rglob("*.py"))


def room_of(name: str) -> str:
    """Return the room that an absolute dotted name lies in."""
    package, _, rest = name.partition(".")
    if package != "jaxclip":
        return package
    first, _, rest = rest.partition(".")
    nested = f"{first}.{rest.partition('.')[0]}"
    if nested in MAY_IMPORT:
        return nested
    known = (SRC / "jaxclip" / first).is_dir() or (
        SRC / "jaxclip" / f"{first}.py"
    ).is_file()
    return first if first and known else "root"


def room_of_file(path: Path) -> str:
    parts = path.relative_to(SRC).with_suffix("").parts
    return room_of(".".join(part for part in parts if part != "__init__"))


def imports(tree: ast.AST, path: Path) -> Iterator[tuple[str, bool]]:
    """Yield each imported dotted name, and whether it stands inside a function."""

    def visit(node: ast.AST, lazily: bool) -> Iterator[tuple[str, bool]]:
        match node:
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                return
            case ast.Import(names=names):
                yield from ((alias.name, lazily) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                folder = path.relative_to(SRC).parent.parts
                base = [*folder[: len(folder) - level + 1]] if level else []
                prefix = ".".join([*base, *([module] if module else [])])
                yield from ((f"{prefix}.{alias.name}", lazily) for alias in names)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                lazily = True
        for child in ast.iter_child_nodes(node):
            yield from visit(child, lazily)

    yield from visit(tree, False)


def forbidden(source: str, path: Path) -> list[str]:
    """Return the imports of a module that its room may not make."""
    room = room_of_file(path)
    allowed = MAY_IMPORT[room]
    return [
        name
        for name, lazily in imports(ast.parse(source), path)
        if (target := room_of(name)) != room
        and target not in sys.stdlib_module_names
        and target not in allowed
        and not (lazily and f"{target} (lazily)" in allowed)
    ]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SRC)))
def test_a_room_imports_only_what_it_may(path: Path) -> None:
    assert forbidden(path.read_text(), path) == []


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("jaxclip/_norms.py", "import optax"),
        ("jaxclip/_norms.py", "from jaxclip._clipping import clip_by_norm"),
        ("jaxclip/_norms.py", "from jaxclip import clip_grad_norm"),
        ("jaxclip/_norms.py", "from . import _clipping"),
        ("jaxclip/_norms.py", "def f():\n    import flax"),
        ("jaxclip/convert/_plan.py", "import torch"),
        ("jaxclip/convert/_plan.py", "from ..demo import run"),
        ("jaxclip/models/_rnnlm.py", "def f():\n    import torch"),
        ("jaxclip/parity/_record.py", "import jaxclip.parity._torch._recorder"),
        ("jaxclip/parity/_record.py", "def f():\n    import torch"),
        ("torchref/rnn.py", "import jaxclip"),
        ("torchref/rnn.py", "from jax import numpy"),
    ],
)
def test_the_check_can_fail(room: str, line: str) -> None:
    assert forbidden(line, SRC / room)


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("jaxclip/_norms.py", "import functools, jax.numpy as jnp"),
        ("jaxclip/convert/_plan.py", "def f():\n    import torch"),
        ("jaxclip/convert/_plan.py", "from jaxclip.convert import _errors"),
        (
            "jaxclip/parity/_record.py",
            "def f():\n    from jaxclip.parity._torch import _recorder",
        ),
        ("jaxclip/parity/_torch/_recorder.py", "import torch"),
        ("jaxclip/demo/_report.py", "from jaxclip import clip_metrics"),
    ],
)
def test_the_check_can_pass(room: str, line: str) -> None:
    assert forbidden(line, SRC / room) == []
