"""The optimizers, each with every combination of its options that torch takes."""

import itertools

import pytest
import torch

from jaxclip import optim
from tests.optim.against_torch import Pair


def combinations(torchs, ours, quick=3, **choices):
    """Return a row for each combination of options that torch takes.

    Args:
        torchs: torch's class.
        ours: The function of jaxclip.optim.
        quick: How many of the rows run in the quick tests; the others are long.
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
    # The first and the last are as different as rows can be.
    apart = max(1, (len(pairs) - 1) // max(1, quick - 1))
    return [
        pytest.param(
            pair,
            marks=[] if index % apart == 0 else [pytest.mark.long],
            id=pair.name,
        )
        for index, pair in enumerate(pairs)
    ]


PAIRS = [
    *combinations(
        torch.optim.SGD,
        optim.sgd,
        lr=[0.05],
        momentum=[0.0, 0.9],
        dampening=[0.0, 0.3],
        weight_decay=[0.0, 0.1],
        nesterov=[False, True],
        maximize=[False, True],
    ),
    *combinations(
        torch.optim.Adam,
        optim.adam,
        weight_decay=[0.0, 0.1],
        amsgrad=[False, True],
        maximize=[False, True],
        decoupled_weight_decay=[False, True],
    ),
    *combinations(
        torch.optim.AdamW,
        optim.adamw,
        lr=[0.01],
        betas=[(0.9, 0.999), (0.0, 0.5)],
        eps=[1e-8, 1e-3],
        weight_decay=[0.01, 0.0],
        amsgrad=[False, True],
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
