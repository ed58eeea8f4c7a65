"""The optimizers, each with every combination of its options that torch takes."""

import itertools

import pytest
import torch

from jaxclip import optim
from tests.optim.against_torch import Pair


def combinations(torchs, ours, **choices):
    """Return a row for each combination of options that torch takes.

    Args:
        torchs: torch's class.
        ours: The function of jaxclip.optim.
        **choices: The values of each option.
    """
    pairs = []
    for values in itertools.product(*choices.values()):
        options = dict(zip(choices, values, strict=True))
        try:
            torchs([torch.zeros(1)], **options)
        except ValueError:
            continue
        pairs.append(Pair(torchs, ours, options))
    return pairs


ALL = [
    *combinations(
        torch.optim.SGD,
        optim.sgd,
        lr=[0.05],
        maximize=[False, True],
        nesterov=[True, False],
        weight_decay=[0.0, 0.1],
        momentum=[0.0, 0.9],
        dampening=[0.0, 0.3],
    ),
    *combinations(
        torch.optim.Adam,
        optim.adam,
        decoupled_weight_decay=[True, False],
        weight_decay=[0.0, 0.1],
        amsgrad=[False, True],
        maximize=[False, True],
    ),
    *combinations(
        torch.optim.AdamW,
        optim.adamw,
        lr=[0.01],
        betas=[(0.0, 0.5), (0.9, 0.999)],
        eps=[1e-3, 1e-8],
        weight_decay=[0.0, 0.01],
        amsgrad=[True, False],
    ),
    *combinations(
        torch.optim.Adamax,
        optim.adamax,
        weight_decay=[0.0, 0.1],
        eps=[1e-8, 1e-3],
        maximize=[False, True],
    ),
    *combinations(
        torch.optim.NAdam,
        optim.nadam,
        betas=[(0.99, 0.9), (0.9, 0.999)],
        weight_decay=[0.0, 0.1],
        momentum_decay=[0.0, 1.0, 4e-3],
        decoupled_weight_decay=[False, True],
        maximize=[False, True],
    ),
    *combinations(
        torch.optim.RAdam,
        optim.radam,
        betas=[(0.0, 0.5), (0.9, 0.9), (0.9, 0.999)],
        weight_decay=[0.0, 0.1],
        decoupled_weight_decay=[True, False],
        maximize=[False, True],
    ),
    # Weights that decay swing around 0 where steps are large and averages forget soon:
    # with an lr of 1e-2 torch comes to differ by 5e-10 from itself, begun 2e-16 away.
    *combinations(
        torch.optim.RMSprop,
        optim.rmsprop,
        lr=[1e-3],
        alpha=[0.9, 0.99],
        weight_decay=[0.0, 0.1],
        momentum=[0.0, 0.9],
        maximize=[False, True],
    ),
    *combinations(
        torch.optim.RMSprop,
        optim.rmsprop,
        alpha=[0.5],
        momentum=[0.0, 0.9],
        centered=[True],
    ),
    *combinations(
        torch.optim.RMSprop,
        optim.rmsprop,
        momentum=[0.0, 0.9],
        centered=[True],
        maximize=[False, True],
        weight_decay=[0.0, 0.1],
    ),
    *combinations(
        torch.optim.Adagrad,
        optim.adagrad,
        lr_decay=[0.0, 0.01],
        weight_decay=[0.0, 0.1],
        initial_accumulator_value=[0.0, 0.1],
        maximize=[False, True],
    ),
    *combinations(
        torch.optim.Adadelta,
        optim.adadelta,
        rho=[0.9, 0.5],
        eps=[1e-6, 1e-3],
        weight_decay=[0.0, 0.1],
        maximize=[False, True],
    ),
    *combinations(
        torch.optim.ASGD,
        optim.asgd,
        lambd=[0.1, 1e-4],
        alpha=[0.75, 0.5],
        t0=[1e6, 50.0],
        weight_decay=[0.0, 0.1],
        maximize=[False, True],
    ),
    *combinations(
        torch.optim.Rprop,
        optim.rprop,
        lr=[1e-2, 1e-4],
        etas=[(0.5, 1.2), (0.3, 1.5)],
        step_sizes=[(1e-6, 50), (1e-3, 0.1)],
        maximize=[False, True],
    ),
    *combinations(
        torch.optim.Adafactor,
        optim.adafactor,
        lr=[0.01, 0.5],
        beta2_decay=[-0.8, 0.0],
        eps=[(None, 1e-3), (1e-6, 1.0)],
        d=[1.0, 1.5],
        weight_decay=[0.0, 0.1],
        maximize=[False, True],
    ),
]


def rows(pairs, quick):
    """Make rows of a test of pairs, of which those are long that are not ``quick``."""
    return [
        pytest.param(
            pair, marks=[] if quick(pair) else [pytest.mark.long], id=pair.name
        )
        for pair in pairs
    ]


# The last of each optimizer, with the last value of each option.
LAST = list({pair.ours: pair for pair in ALL}.values())
PAIRS = rows(ALL, LAST.__contains__)
