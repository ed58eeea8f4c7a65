"""Trainings and reports made up for the tests, which no framework had to run."""

import numpy as np

from jaxclip.demo._history import History
from jaxclip.demo._proof import Proof
from jaxclip.demo._trainings import Trainings
from jaxclip.parity import Report
from jaxclip.parity._verify._free_run import FreeRun, FreeStep
from jaxclip.parity._verify._judge._judging import judged
from jaxclip.parity._verify._judge._rules import Rule
from jaxclip.parity._verify._judge._samples import Sample
from jaxclip.parity._verify._report._results import StageResult

STEPS = 20


def history(*, error=0.0, growth=1.0, steps=STEPS):
    """Make a run in float32 whose errors grow from step to step.

    ``error`` is the relative error after the first step, ``growth`` what each step
    multiplies it by.
    """
    errors = 1 + error * growth ** np.arange(steps)
    losses = np.linspace(4, 2, steps) * errors
    weights = {
        step: {"w": (np.arange(1.0, 13.0).reshape(3, 4) * errors[step - 1])}
        for step in (1, 5, 10, 20)
        if step <= steps
    }
    norms = np.linspace(3, 0.5, steps)
    return History(
        losses.astype("float32"),
        norms,
        np.minimum(norms, 1.0),
        np.full(steps, 0.01),
        {
            step: {name: w.astype("float32") for name, w in named.items()}
            for step, named in weights.items()
        },
    )


def trainings(**changed):
    """Make the runs of a correct port, but for those given."""
    runs = {
        "torch": history(error=3e-7, growth=1.2),
        "jax": history(error=-2e-7, growth=1.2),
        "unclipped": history(error=1.0),
    }
    return Trainings(**(runs | changed), max_norm=1.0)


def report(dtype="float32", *, error=0.0, noise=1e-7):
    """Make the report on a recording of ten steps whose loss is off by ``error``."""
    found = []
    for number in range(10):
        loss = np.full(1, 2.0)
        wrong = (loss * (1 + error)).astype(dtype)
        sample = Sample("loss", "", wrong, loss.astype("float32"), loss)
        tensor = judged(number, "loss", sample, Rule())
        found.append(StageResult(number, "loss", (tensor,)))
    steps = [
        FreeStep(n, 2.0, 2.0, error + 1e-16 * (n + 1), noise, 0.5, "w", True, True)
        for n in range(10)
    ]
    return Report("run.trace", dtype, "4 times", (*found,), FreeRun((*steps,), 250.0))


def proof(*, error32=0.0, error64=0.0):
    """Make the proof of a correct port, but for the errors of the losses."""
    return Proof(report(error=error32), report("float64", error=error64), clipped=7)
