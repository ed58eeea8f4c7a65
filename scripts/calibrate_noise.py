"""Calibrate the noise of the verifier: ``python scripts/calibrate_noise.py RESULTS``.

Verifies correct ports: every model of `tests.trios` in NNX and in Linen, with each
optimizer of `tests.parity.recordings`, clipped, in float32 and in float64, over seeds.
Each verification is a line of JSON in the file RESULTS, with the greatest ratio of each
stage; those that are there already are not computed again. ``--write`` sums them up in
docs/verifying.md. It takes hours of one core; ``--seeds``, ``--models`` and others
choose a part.

Each verification compiles its port anew, and that of the next seed is the same program.
So what XLA compiles is kept in a folder beside RESULTS, named as it is with ``.xla`` at
the end, or in another (``--cache``); 1.8 times faster was measured. The folder may be
deleted at any time.
"""

import argparse
import itertools
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

KINDS = ("nnx", "linen")
DTYPES = ("float32", "float64")
STEPS = 20
PAGE = ROOT / "docs" / "verifying.md"
START, END = "<!-- calibration: start -->\n", "\n<!-- calibration: end -->"


@dataclass(frozen=True)
class Run:
    """A recorded run of a correct port, in both libraries of modules.

    Attributes:
        model: A name in `tests.trios`.
        optimizer: A name in `tests.parity.recordings`.
        dtype: Of the recording.
        seed: Of weights and batches.
    """

    model: str
    optimizer: str
    dtype: str
    seed: int


def measured(
    runs: Iterable[Run], kinds: Sequence[str] = KINDS, steps: int = STEPS
) -> Iterator[list[dict[str, Any]]]:
    """Verify the ports of each run; yield what was found of each of them, together."""
    import torch

    from jaxclip.parity import verify
    from tests.parity.recordings import port_of, recorded
    from tests.trios import BY_NAME

    torch.set_num_threads(1)  # more of them wait for each other, with arrays so small
    for run in runs:
        trio = BY_NAME[run.model]
        ports = {kind: port_of(trio, kind, run.optimizer) for kind in kinds}
        with tempfile.TemporaryDirectory() as folder:
            path = recorded(
                Path(folder) / "run.trace",
                trio,
                optimizer=run.optimizer,
                dtype=getattr(torch, run.dtype),
                steps=steps,
                seed=run.seed,
            )
            yield [
                vars(run) | {"kind": kind} | found(verify(path, port))
                for kind, port in ports.items()
            ]


def found(report: Any) -> dict[str, Any]:
    """Return the greatest ratio of each stage, and what differs."""
    ratios: dict[str, float] = {}
    for stage in report.stages:
        for tensor in stage.tensors:
            if math.isfinite(tensor.ratio):
                ratios[stage.stage] = max(ratios.get(stage.stage, 0.0), tensor.ratio)
    told = [step for step in report.free_run.steps if step.told]
    return {
        "tensors": sum(len(stage.tensors) for stage in report.stages),
        "ratios": ratios,
        "free": max((step.ratio for step in told), default=0.0),
        "told": len(told),
        "free_passed": report.free_run.passed,
        "failures": [
            f"step {t.step}, {t.stage}, {t.name}: {t.detail}" for t in report.failures
        ],
    }


def render(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the tables: the greatest ratios of each stage, and each optimizer's."""
    ratios = [row["ratios"] | {"free run": row["free"]} for row in rows]
    by_stage: list[Sequence[str]] = [("stage", *DTYPES), ("---",) * 3]
    for stage in dict.fromkeys(stage for each in ratios for stage in each):
        greatest = dict.fromkeys(DTYPES, 0.0)
        for row, each in zip(rows, ratios, strict=True):
            own = each.get(stage, 0.0)
            greatest[row["dtype"]] = max(greatest[row["dtype"]], own)
        by_stage.append((stage, *(f"{ratio:.2g}" for ratio in greatest.values())))
    by_optimizer: list[Sequence[str]] = [
        ("optimizer", "verified", "blamed"),
        ("---",) * 3,
    ]
    for optimizer in dict.fromkeys(row["optimizer"] for row in rows):
        own = [row for row in rows if row["optimizer"] == optimizer]
        blamed = sum(bool(row["failures"]) or not row["free_passed"] for row in own)
        by_optimizer.append((optimizer, str(len(own)), str(blamed)))
    models = {row["model"] for row in rows}
    said = (
        f"The greatest ratios of {sum(row['tensors'] for row in rows):,} tensors in "
        f"{len(rows):,} verifications of {len(models)} models in NNX and in Linen:"
    )
    return "\n\n".join([said, table(by_stage), table(by_optimizer)])


def table(rows: Iterable[Sequence[str]]) -> str:
    """Return rows as Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def section(text: str) -> str:
    """Return what stands between the markers."""
    if text.count(START) != 1 or text.count(END) != 1:
        raise ValueError(f"{PAGE.name}: expected {START.strip()} and its end, once.")
    return text.partition(START)[2].partition(END)[0]


def write(rows: Sequence[Mapping[str, Any]], page: Path = PAGE) -> None:
    """Write the tables into the page."""
    text = page.read_text()
    old = f"{START}{section(text)}{END}"
    written = page.with_suffix(".new")
    written.write_text(text.replace(old, f"{START}{render(rows)}{END}"))
    os.replace(written, page)


def main(arguments: Sequence[str]) -> int:
    """Verify what is not in the file of results, and add it there."""
    import jax
    from rich.progress import track

    from tests.parity.recordings import OPTIMIZERS
    from tests.trios import BY_NAME

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="a file of lines of JSON")
    parser.add_argument("--models", nargs="+", default=[*BY_NAME])
    parser.add_argument("--optimizers", nargs="+", default=[*OPTIMIZERS])
    parser.add_argument("--dtypes", nargs="+", default=DTYPES)
    parser.add_argument("--seeds", nargs="+", type=int, default=range(10))
    parser.add_argument("--optimize", action="store_true", help="let XLA optimize")
    parser.add_argument("--cache", type=Path, help="a folder for what is compiled")
    parser.add_argument("--write", action="store_true", help="only write the page")
    args = parser.parse_args(arguments)
    if args.write:
        write(read(args.results))
        return 0
    if not args.optimize:  # it takes half the time to compile
        jax.config.update("jax_disable_most_optimizations", True)
    keep_compiled(args.cache or args.results.with_name(f"{args.results.name}.xla"))
    done = {
        Run(*(row[field.name] for field in fields(Run))) for row in read(args.results)
    }
    asked = (args.models, args.optimizers, args.dtypes, args.seeds)
    left = [
        run
        for run in itertools.starmap(Run, itertools.product(*asked))
        if run not in done
    ]
    with args.results.open("a") as file:
        for rows in track(measured(left), "Verifying", total=len(left)):
            file.write("".join(json.dumps(row) + "\n" for row in rows))
            file.flush()
    return 0


def keep_compiled(folder: Path) -> None:
    """Let XLA take what it has compiled before from a folder, however little it is."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def read(path: Path) -> list[dict[str, Any]]:
    """Read the results that there are."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
