"""Write the README's tables: ``python scripts/write_readme_tables.py [--check]``.

The methods come from the docstrings, the semantics, the kinks and the optimizers from
running the libraries, the layers from the rules by which they are converted. With
``--check`` nothing is written, and the exit status says whether the README is current.
"""

import importlib.metadata
import inspect
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
MARKERS = ("methods", "layers", "kinks", "optimizers", "semantics")

# What each is held against in the tests, where that is code that no one here wrote, or
# else the formula in NumPy.
HELD_AGAINST = {
    "clip_by_global_norm": "torch",
    "clip_by_norm": "torch",
    "clip_by_value": "torch",
    "clip_by_group_norm": "`clip_by_global_norm`, group by group",
    "clip_by_block_rms": "Optax",
    "clip_by_update_rms": "torch's `Adafactor`",
    "adaptive_grad_clip": "timm, pytorch_optimizer, Optax",
    "clippy": "the formula",
    "autoclip": "`autoclip`",
    "zclip": "`zclip`",
    "adagc": "pytorch_optimizer",
    "spam_clip": "pytorch_optimizer",
    "per_example_clip": "Optax",
    "skip_nonfinite": "Optax",
    "skip_spikes": "OLMo-core's rule",
}


def methods() -> list[str]:
    """Return the rows of the table of methods."""
    import jaxclip

    rows = ["| | what it does | paper | held against |", "|---|---|---|---|"]
    for name, peer in HELD_AGAINST.items():
        doc = inspect.getdoc(getattr(jaxclip, name)) or ""
        rows.append(f"| `{name}` | {summary(doc)} | {paper(doc)} | {peer} |")
    return rows


def summary(doc: str) -> str:
    """Return the first line of a docstring, as a part of a sentence."""
    return doc.partition("\n")[0].rstrip(".").replace("``", "`")


def paper(doc: str) -> str:
    """Return the first paper that a docstring refers to, as a link."""
    _, _, references = doc.partition("References:")
    text = " ".join(references.split())
    found = re.search(r"(.*?),\s*`(.+?)\s*<(.+?)>`_,\s*(\d{4})", text)
    if found is None:
        return ""
    authors, _, address, year = found.groups()
    return f"[{authors.strip()}, {year}]({address})"


def semantics() -> list[str]:
    """Return the rows of the table of semantics, with the versions above them."""
    sys.path.insert(0, str(ROOT))
    from tests.semantics import table

    versions = " and ".join(
        f"{name} {importlib.metadata.version(name).partition('+')[0]}"
        for name in ("optax", "torch")
    )
    rows: list[Sequence[str]] = [
        ("gradients", "truth", "jaxclip", "optax", "torch"),
        ("---",) * 5,
        *table(),
    ]
    return [
        f"`clip_by_global_norm` and `clip_grad_norm_`, of {versions}: the norm that",
        "they leave, for a `max_norm` of 1 unless one is named, or what they return.",
        "",
        *["| " + " | ".join(row) + " |" for row in rows],
    ]


def layers() -> list[str]:
    """Return the rows of the table of layers that have a rule."""
    from jaxclip.convert._rules.registry import RULES

    # Of each row the NNX types and the Linen types; a stock layer and our own differ.
    sides: dict[tuple[tuple[str, ...], str, str], tuple[list[str], list[str]]] = {}
    for module_type, rule in RULES.items():
        if rule.torch:
            package, is_linen, name = shown_type(module_type)
            row = sides.setdefault((rule.torch, rule.note, package), ([], []))
            row[is_linen].append(f"`{name}`")
    rows = ["| torch | NNX | Linen | to be minded |", "|---|---|---|---|"]
    for (torch, note, _), types in sides.items():
        names = ", ".join(f"`{name}`" for name in torch)
        nnx, linen = (", ".join(side) for side in types)
        rows.append(f"| {names} | {nnx} | {linen} | {note} |")
    return rows


def shown_type(module_type: type) -> tuple[str, bool, str]:
    """Return a type's package, whether it is Linen's, and what users call it."""
    from flax import linen

    package = module_type.__module__.partition(".")[0]
    is_linen = issubclass(module_type, linen.Module)
    room = {
        ("flax", False): "nnx",
        ("flax", True): "nn",
        ("jaxclip", False): "models",
        ("jaxclip", True): "models.linen",
    }[package, is_linen]
    return package, is_linen, f"{room}.{module_type.__qualname__}"


def kinks() -> list[str]:
    """Return the rows of the table of gradients where a function has a kink."""
    sys.path.insert(0, str(ROOT))
    from tests.kinks import table

    head: list[Sequence[str]] = [
        ("x", "torch", "gradient", "JAX", "gradient", "in JAX with torch's gradient"),
        ("---",) * 6,
    ]
    return ["| " + " | ".join(row) + " |" for row in [*head, *table()]]


def optimizers() -> list[str]:
    """Return the rows of the table of optimizers."""
    sys.path.insert(0, str(ROOT))
    from tests.optim.nearest import table

    head: list[Sequence[str]] = [
        ("torch", "jaxclip", "differs by", "nearest in Optax", "differs by"),
        ("---",) * 5,
    ]
    return ["| " + " | ".join(row) + " |" for row in [*head, *table()]]


def render(name: str) -> str:
    """Return what belongs between two markers."""
    writers: dict[str, Any] = {
        "methods": methods,
        "layers": layers,
        "kinks": kinks,
        "optimizers": optimizers,
        "semantics": semantics,
    }
    return "\n".join(writers[name]())


def markers(name: str) -> tuple[str, str]:
    """Return the lines that a table stands between."""
    return f"<!-- {name}: start -->\n", f"\n<!-- {name}: end -->"


def section(text: str, name: str) -> str:
    """Return what stands between two markers."""
    start, end = markers(name)
    if text.count(start) != 1 or text.count(end) != 1:
        raise ValueError(f"README.md: expected {start.strip()} and its end, once each.")
    return text.partition(start)[2].partition(end)[0]


def main(
    arguments: Sequence[str], readme: Path = README, names: Sequence[str] = MARKERS
) -> int:
    """Write the tables of these names, or say whether they are current."""
    text = readme.read_text()
    current = text
    for name in names:
        start, end = markers(name)
        old = section(current, name)
        current = current.replace(f"{start}{old}{end}", f"{start}{render(name)}{end}")
    if "--check" in arguments:
        if current != text:
            print(
                "README.md is out of date: run python scripts/write_readme_tables.py",
                file=sys.stderr,
            )
        return int(current != text)
    new = readme.with_suffix(".new")
    new.write_text(current)
    os.replace(new, readme)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
