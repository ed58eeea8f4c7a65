"""The harness finds what differs."""

from functools import partial

import jax
import numpy as np
import pytest
import torch
from flax import linen as nn
from flax import nnx

from jaxclip.convert import transposed
from jaxclip.convert._rules.links import Rule
from jaxclip.convert._rules.registry import RULES
from tests.convert.layers.harness import check_layer, normal


def check(nnx_layer=nnx.Linear, linen_layer=nn.Dense, source=None):
    check_layer(
        source or torch.nn.Linear(3, 3),
        partial(nnx_layer, 3, 3) if nnx_layer else None,
        partial(linen_layer, 3) if linen_layer else None,
        normal(2, 3),
    )


def test_what_agrees_passes():
    check()


def test_a_wrong_output_is_found():
    class Wrong(nnx.Linear):
        def __call__(self, x):
            return super().__call__(x) * (1 + 1e-11)

    with pytest.raises(AssertionError, match="nnx, float64, outputs, 0: error 1"):
        check(nnx_layer=Wrong)


def test_a_wrong_gradient_of_a_parameter_is_found():
    class Wrong(nn.Dense):
        def __call__(self, x):
            y = super().__call__(x)
            return (
                y - (b := self.variables["params"]["bias"]) + jax.lax.stop_gradient(b)
            )

    with pytest.raises(AssertionError, match="linen, float32, weights, bias: error"):
        check(nnx_layer=None, linen_layer=Wrong)


def test_a_wrong_gradient_of_an_input_is_found():
    class Wrong(nnx.Linear):
        def __call__(self, x):
            return super().__call__(jax.lax.stop_gradient(x))

    with pytest.raises(AssertionError, match="nnx, float32, inputs, 0: error"):
        check(nnx_layer=Wrong)


def test_a_buffer_that_is_not_kept_up_is_found():
    class Counting(torch.nn.Linear):
        def __init__(self):
            super().__init__(3, 3)
            self.register_buffer("calls", torch.tensor([0.0]))

        def forward(self, x):
            self.calls += 1
            return super().forward(x)

    class Wrong(nnx.Linear):
        def __init__(self, *sizes, **options):
            super().__init__(*sizes, **options)
            self.calls = nnx.BatchStat(np.zeros(1))

    with pytest.raises(AssertionError, match="nnx, float32, buffers, calls: error"):
        check(nnx_layer=Wrong, linen_layer=None, source=Counting())


def test_a_rule_that_takes_the_way_there_alone_is_found(monkeypatch):
    there = transposed("weight", "kernel").to_flax

    def links(layer, variables):
        yield transposed("weight", "kernel")

    def back(kernel):
        return (kernel.T.copy() + kernel.dtype.type(1e-7),)

    right = next(links(None, {}))
    wrong = type(right)(right.torch, right.flax, there, back)
    monkeypatch.setitem(RULES, nnx.Linear, Rule(lambda *_: [wrong]))
    with pytest.raises(AssertionError, match="weight is not what it was"):
        check_layer(
            torch.nn.Linear(3, 3, bias=False),
            partial(nnx.Linear, 3, 3, use_bias=False),
            None,
            normal(2, 3),
        )
