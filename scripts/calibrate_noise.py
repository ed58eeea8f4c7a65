"""Calibrate the noise of the verifier: ``python scripts/calibrate_noise.py RESULTS``.

Verifies correct ports: every model of `tests.trios` in NNX and in Linen, with each
optimizer of `tests.parity.recordings`, clipped, in float32 and in float64, over seeds.
Each verification is a line of JSON in the file RESULTS, with the greatest ratio of each
stage; those that are there already are not computed again. ``--write`` sums them up in
docs/verifying.md. It takes hours of one core; ``--seeds``, ``--models`` and others
choose a part.
"""

import argparse
import itertools
import json
import math
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

KINDS = ("nnx", "linen")
DTYPES = ("float32", "float64")
STEPS = 20


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
) -> Iterator[dict[str, Any]]:
    """Verify the ports of each run; yield what was found of each of them."""
    import torch

    from jaxclip.parity import verify
    from tests.parity.recordings import port_of, recorded
    from tests.trios import BY_NAME

    torch.set_num_threads(1)  # more of them wait for each other, with arrays so small
    ports: dict[str, Any] = {}
    of = None
    for run in runs:
        trio = BY_NAME[run.model]
        if of != (run.model, run.optimizer):
            of = run.model, run.optimizer
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
            for kind, port in ports.items():
                yield vars(run) | {"kind": kind} | found(verify(path, port))


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


def main(arguments: Sequence[str]) -> int:
    """Verify what is not in the file of results, and add it there."""
    import jax
    from rich.progress import track

    from tests.parity.recordings import OPTIMIZERS
    from tests.trios import BY_NAME

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--models", nargs="+", default=[*BY_NAME])
    parser.add_argument("--optimizers", nargs="+", default=[*OPTIMIZERS])
    parser.add_argument("--dtypes", nargs="+", default=DTYPES)
    parser.add_argument("--seeds", nargs="+", type=int, default=range(10))
    parser.add_argument("--optimize", action="store_true", help="let XLA optimize")
    args = parser.parse_args(arguments)
    if not args.optimize:  # it takes half the time to compile
        jax.config.update("jax_disable_most_optimizations", True)
    done = {Run(*(row[key] for key in FIELDS)) for row in read(args.results)}
    asked = (args.models, args.optimizers, args.dtypes, args.seeds)
    left = [
        run
        for run in itertools.starmap(Run, itertools.product(*asked))
        if run not in done
    ]
    with args.results.open("a") as file:
        made = measured(left)
        for row in track(made, "Verifying", total=len(left) * len(KINDS)):
            file.write(json.dumps(row) + "\n")
            file.flush()
    return 0


FIELDS = ("model", "optimizer", "dtype", "seed")


def read(path: Path) -> list[dict[str, Any]]:
    """Read the results that there are."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
