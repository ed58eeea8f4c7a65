"""Trainings made up for the tests, which no framework had to run."""

import numpy as np

from jaxclip.demo._agreement import judge
from jaxclip.demo._history import History
from jaxclip.demo._trainings import Trainings

STEPS = 20


def history(dtype="float64", *, error=0.0, growth=1.0, steps=STEPS):
    """Make a run whose errors grow from step to step.

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
        losses.astype(dtype),
        norms,
        np.minimum(norms, 1.0),
        np.full(steps, 0.01),
        {
            step: {name: w.astype(dtype) for name, w in named.items()}
            for step, named in weights.items()
        },
    )


def runs(**changed):
    """Make the four runs of a correct port, but for those given."""
    return {
        "torch32": history("float32", error=3e-7, growth=1.2),
        "torch64": history(error=1e-15, growth=1.2),
        "jax32": history("float32", error=-2e-7, growth=1.2),
        "jax64": history(),
    } | changed


def trainings(*, unclipped=None, **changed):
    four = runs(**changed)
    free = history("float32", error=1.0) if unclipped is None else unclipped
    return Trainings(
        torch=four["torch32"],
        jax=four["jax32"],
        unclipped=free,
        torch64=four["torch64"],
        jax64=four["jax64"],
        max_norm=1.0,
        agreement=judge(1.0, **four),
    )
