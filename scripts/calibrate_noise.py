"""Calibrate the noise of the verifier: ``python scripts/calibrate_noise.py``.

Verifies correct ports: every model of `tests.trios` in NNX and in Linen, with each
optimizer of `tests.parity.recordings`, clipped, in float32 and in float64, over seeds.
Each verification is a row of docs/calibration.csv, with the greatest ratio of each
stage; those that are there already are not computed again, so a changed rule wants the
file deleted first. It takes hours of one core; ``--seeds``, ``--models`` and others
choose a part, and several processes may add to one file. ``--write`` sums it up in
docs/verifying.md.
"""

import argparse
import contextlib
import csv
import itertools
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

KINDS = ("nnx", "linen")
DTYPES = ("float32", "float64")
STEPS = 20
RESULTS = ROOT / "docs" / "calibration.csv"
PAGE = ROOT / "docs" / "verifying.md"
START, END = "<!-- calibration: start -->\n", "\n<!-- calibration: end -->"
FREE = "free run"


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


@dataclass(frozen=True)
class Found:
    """What the verification of a port found.

    Attributes:
        run: What was recorded.
        kind: The library of the port's modules.
        tensors: How many tensors were compared.
        told: In how many steps of the free run rounding was small enough to tell.
        failures: What differs, which should be nothing.
        ratios: The greatest ratio of each stage, and of the free run.
    """

    run: Run
    kind: str
    tensors: int
    told: int
    failures: str
    ratios: Mapping[str, float]


def measured(
    runs: Iterable[Run], kinds: Sequence[str] = KINDS, steps: int = STEPS
) -> Iterator[list[Found]]:
    """Verify the ports of each run; yield what was found of each of them, together.

    Runs in a row that differ in their seed alone share what is compiled.
    """
    import torch

    from jaxclip.parity import verify
    from tests.parity.recordings import port_of, recorded
    from tests.trios import BY_NAME

    torch.set_num_threads(1)  # more of them wait for each other, with arrays so small
    for own, seeds in itertools.groupby(runs, lambda run: replace(run, seed=0)):
        trio = BY_NAME[own.model]
        ports = {kind: port_of(trio, kind, own.optimizer) for kind in kinds}
        with compiled_once(), tempfile.TemporaryDirectory() as folder:
            for run in seeds:
                path = recorded(
                    Path(folder) / f"{run.seed}.trace",
                    trio,
                    optimizer=run.optimizer,
                    dtype=getattr(torch, run.dtype),
                    steps=steps,
                    seed=run.seed,
                )
                yield [
                    found(run, kind, verify(path, port)) for kind, port in ports.items()
                ]


@contextlib.contextmanager
def compiled_once() -> Iterator[None]:
    """Within it, a port's verifications share what is compiled for its first.

    A port whose recordings are all of one structure is the same program for each. Only
    who made the port knows that it does not change in between, as ``verify`` does not.
    """
    from jaxclip.parity._verify import _verifying

    names = ("read_model", "Runs", "Watched")
    made = {name: getattr(_verifying, name) for name in names}
    for name, make in made.items():
        setattr(_verifying, name, once(make))
    try:
        yield
    finally:
        for name, make in made.items():
            setattr(_verifying, name, make)


def once(make: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that makes something once for each first argument."""
    kept: dict[int, tuple[Any, Any]] = {}

    def made(first: Any, *others: Any, **options: Any) -> Any:
        if id(first) not in kept:  # it is kept, too, so that no other has its id
            kept[id(first)] = first, make(first, *others, **options)
        return kept[id(first)][1]

    return made


def found(run: Run, kind: str, report: Any) -> Found:
    """Return the greatest ratio of each stage, and what differs."""
    told = [step for step in report.free_run.steps if step.told]
    ratios = {stage: 0.0 for stage in stages()}
    ratios[FREE] = max((step.ratio for step in told), default=0.0)
    for stage in report.stages:
        finite = (t.ratio for t in stage.tensors if math.isfinite(t.ratio))
        ratios[stage.stage] = max(ratios[stage.stage], *finite, 0.0)
    failures = [f"step {t.step}, {t.stage}, {t.name}" for t in report.failures]
    if not report.free_run.passed:
        failures.append(FREE)
    return Found(
        run=run,
        kind=kind,
        tensors=sum(len(stage.tensors) for stage in report.stages),
        told=len(told),
        failures="; ".join(failures),
        ratios=ratios,
    )


def stages() -> tuple[str, ...]:
    """Return the stages of a step, and the free run."""
    from jaxclip.parity._verify._report._results import STAGES

    return (*STAGES, FREE)


# ---- the rows ------------------------------------------------------------------------


def header() -> list[str]:
    """Return the names of the columns."""
    own = [field.name for field in fields(Run)]
    return [*own, "kind", "tensors", "told", "failures", *stages()]


def cells(row: Found) -> list[Any]:
    """Return a row of the file."""
    ratios = (f"{row.ratios[stage]:.4g}" for stage in stages())
    return [*astuple(row.run), row.kind, row.tensors, row.told, row.failures, *ratios]


def read(path: Path) -> list[Found]:
    """Read the rows that there are.

    Raises:
        ValueError: If the file has other columns.
    """
    if not path.exists():
        return []
    with path.open(newline="") as file:
        table = csv.DictReader(file)
        if table.fieldnames != header():
            raise ValueError(f"{path}: its columns must be {', '.join(header())}.")
        return [
            Found(
                run=Run(r["model"], r["optimizer"], r["dtype"], int(r["seed"])),
                kind=r["kind"],
                tensors=int(r["tensors"]),
                told=int(r["told"]),
                failures=r["failures"],
                ratios={stage: float(r[stage]) for stage in stages()},
            )
            for r in table
        ]


def add(path: Path, rows: Iterable[Found]) -> None:
    """Add rows to the file, which begins with the names of its columns."""
    with path.open("a", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        if file.tell() == 0:
            table.writerow(header())
        table.writerows(map(cells, rows))


# ---- the page ------------------------------------------------------------------------


def render(rows: Sequence[Found]) -> str:
    """Return the tables: the greatest ratios of each stage, and each optimizer's."""
    by_stage: list[Sequence[str]] = [("stage", *DTYPES), ("---",) * 3]
    for stage in stages():
        greatest = (
            max((r.ratios[stage] for r in rows if r.run.dtype == dtype), default=0.0)
            for dtype in DTYPES
        )
        by_stage.append((stage, *(f"{ratio:.2g}" for ratio in greatest)))
    by_optimizer: list[Sequence[str]] = [
        ("optimizer", "verified", "blamed"),
        ("---",) * 3,
    ]
    for optimizer in dict.fromkeys(row.run.optimizer for row in rows):
        own = [row for row in rows if row.run.optimizer == optimizer]
        blamed = sum(bool(row.failures) for row in own)
        by_optimizer.append((optimizer, str(len(own)), str(blamed)))
    models = {row.run.model for row in rows}
    said = (
        f"The greatest ratios of {sum(row.tensors for row in rows):,} tensors in "
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


def write(rows: Sequence[Found], page: Path = PAGE) -> None:
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
    parser.add_argument("--models", nargs="+", default=[*BY_NAME])
    parser.add_argument("--optimizers", nargs="+", default=[*OPTIMIZERS])
    parser.add_argument("--dtypes", nargs="+", default=DTYPES)
    parser.add_argument("--seeds", nargs="+", type=int, default=range(10))
    parser.add_argument("--optimize", action="store_true", help="let XLA optimize")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file")
    parser.add_argument("--write", action="store_true", help="only write the page")
    args = parser.parse_args(arguments)
    done = read(args.results)
    if args.write:
        write(done)
        return 0
    if not args.optimize:  # it takes half the time to compile
        jax.config.update("jax_disable_most_optimizations", True)
    known = {row.run for row in done}
    asked = (args.models, args.optimizers, args.dtypes, args.seeds)
    wanted = itertools.starmap(Run, itertools.product(*asked))
    left = [run for run in wanted if run not in known]
    for rows in track(measured(left), "Verifying", total=len(left)):
        add(args.results, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
