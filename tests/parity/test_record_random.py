"""Masks of dropout are recorded, and other random numbers, or they are named."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from jaxclip.parity import open_trace, record
from jaxclip.parity._torch._random import Generators, dropout_mask, same_state
from tests.parity.loops import X, recorded, setup, step


class Dropped(nn.Module):
    def __init__(self, kind, shape, inplace):
        """Make the layers."""
        super().__init__()
        self.shape = shape
        self.fc = nn.Linear(4, 4)
        self.drop = kind(0.4, inplace=inplace)
        self.seen = []

    def forward(self, x):
        hidden = self.fc(x).clamp(min=0).reshape(self.shape)
        self.seen.append(hidden.detach().clone().numpy())
        hidden = self.drop(hidden)
        self.seen.append(hidden.detach().clone().numpy())
        return hidden.reshape(6, 4)[:, :1]


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (nn.Dropout, (6, 4)),
        (nn.Dropout1d, (2, 6, 2)),
        (nn.Dropout2d, (2, 3, 2, 2)),
        (nn.Dropout3d, (2, 6, 2, 1, 1)),
    ],
)
def test_masks_are_what_dropout_multiplied_its_input_by(kind, shape, inplace, tmp_path):
    model, optimizer = setup(lambda: Dropped(kind, shape, inplace))
    _, trace = recorded(tmp_path, model, optimizer)
    (mask,) = trace[0].masks
    assert (mask.module, mask.call) == ("drop", 0)
    given, returned = model.seen
    assert {*np.unique(mask.array)} == {0, np.float32(1 / 0.6)}
    # The output does not show the mask where the input is 0.
    assert ((mask.array > 0) & (given == 0)).any()
    np.testing.assert_array_equal(given * mask.array, returned)
    assert trace[0].unexplained_draws == ()


def test_a_mask_that_a_module_did_not_apply_is_not_kept():
    torch.manual_seed(0)
    generators = Generators(nn.Linear(1, 1))
    given = torch.ones(4, 4)

    def twice(x):
        return F.dropout(F.dropout(x))

    def other(x):
        return F.dropout(x, 0.3)

    def and_more(x):
        dropped = F.dropout(x)
        torch.rand(1)
        return dropped

    wrong = ((twice, False), (other, False), (and_more, False))
    for forward, found in ((F.dropout, True), *wrong):
        before = generators.state()
        returned = F.dropout(given)
        after = generators.state()
        module = nn.Dropout()
        module.forward = forward
        mask = dropout_mask(module, given, returned, generators, before)
        assert (mask is not None) == found
        # Whatever was drawn, the run goes on as if it had not been.
        assert same_state(generators.state(), after)


ATTENTION = nn.MultiheadAttention(4, 2, dropout=0.5)
LSTM = nn.LSTM(4, 4, num_layers=3, dropout=0.5)
GENERATOR = torch.Generator()

RETURNED = {
    "rand": lambda x: torch.rand(3),
    "rand_like": torch.rand_like,
    "randn": lambda x: torch.randn(3, generator=GENERATOR),
    "randn_like": torch.randn_like,
    "randint": lambda x: torch.randint(5, (3,)),
    "randint_like": lambda x: torch.randint_like(x, 5),
    "randperm": lambda x: torch.randperm(3),
    "normal": lambda x: torch.normal(x, 1.0),
    "normal_": lambda x: x.clone().normal_(),
    "uniform_": lambda x: x.clone().uniform_(),
    "random_": lambda x: x.clone().random_(),
    "exponential_": lambda x: x.clone().exponential_(),
    "cauchy_": lambda x: x.clone().cauchy_(),
    "geometric_": lambda x: x.clone().geometric_(0.5),
    "log_normal_": lambda x: x.clone().log_normal_(),
    "multinomial": lambda x: torch.distributions.Categorical(logits=x).sample(),
    "poisson": lambda x: torch.poisson(x.exp()),
    "binomial": lambda x: torch.binomial(x.exp().ceil(), x.sigmoid()),
    "_standard_gamma": lambda x: torch.distributions.Gamma(x.exp(), 1.0).sample(),
    "_sample_dirichlet": lambda x: torch.distributions.Dirichlet(x.exp()).sample(),
    "bernoulli": lambda x: torch.bernoulli(x.sigmoid()),
    "bernoulli_": lambda x: x.clone().bernoulli_(0.5),
}
"""By the name of a kernel, a function that returns what it draws."""

USED = {
    "a dropout": (lambda x: F.dropout(x), "masks", [(6, 4)]),
    "a dropout of a GPU": (
        lambda x: torch.native_dropout(x, 0.5, True),
        *("masks", [(6, 4)]),
    ),
    "a dropout of channels": (lambda x: F.dropout1d(x[None]), "masks", [(1, 6, 1)]),
    "an attention": (lambda x: ATTENTION(x, x, x), "masks", [(2, 6, 6)]),
    "a fused attention": (
        lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5),
        *("masks", [(6, 6)]),
    ),
    "a recurrent net": (lambda x: LSTM(x[:, None]), "masks", [(6, 1, 4)] * 2),
    "a sample with a gradient": (lambda x: F.gumbel_softmax(x), "draws", [(6, 4)]),
    "two samples": (lambda x: [torch.rand(2), torch.rand(3)], "draws", [(2,), (3,)]),
}
"""Functions that make something else of what they draw, and the shapes of that."""


class Calling(nn.Module):
    """Calls a function on its input, and returns that."""

    def __init__(self, function):
        """Keep what it returns."""
        super().__init__()
        self.function, self.returned = [function], []

    def forward(self, x):
        self.returned.append(self.function[0](x))
        return x


def calling(function, tmp_path, steps=2):
    """Record a model that calls a function in its first module."""
    model = nn.Sequential(Calling(function), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    _, trace = recorded(tmp_path, model, optimizer, steps=steps)
    assert all(held.unexplained_draws == () for held in trace)
    return model[0].returned, trace


@pytest.mark.parametrize("kernel", RETURNED)
def test_what_a_function_draws_is_recorded(kernel, tmp_path):
    returned, trace = calling(RETURNED[kernel], tmp_path)
    for drawn, held in zip(returned, trace, strict=True):
        zeros_and_ones = kernel.startswith("bernoulli")
        (found,) = held.masks if zeros_and_ones else held.draws
        assert held.masks == () or held.draws == ()
        assert (found.module, found.type) == ("0", kernel)
        assert (found.call, found.output) == (0, "0")
        # torch's distributions put their samples into a shape of their own.
        np.testing.assert_array_equal(found.array.ravel(), drawn.numpy().ravel())


@pytest.mark.parametrize("name", USED)
def test_what_is_drawn_within_a_function_is_recorded(name, tmp_path):
    function, stage, shapes = USED[name]
    _, trace = calling(function, tmp_path)
    for held in trace:
        found = getattr(held, stage)
        assert len(held.masks) + len(held.draws) == len(found)
        assert [each.array.shape for each in found] == shapes
        assert [each.output for each in found] == [*map(str, range(len(shapes)))]
        if stage == "masks":
            assert {*np.unique([each.array for each in found])} == {0, 1}


def test_the_first_draw_after_a_step_without_any_is_named_and_the_next_recorded(
    tmp_path,
):
    """Every kernel is watched in the first step, and after one that drew."""
    turn = iter(range(9))

    def sometimes(x):
        return torch.rand(2) if next(turn) in (2, 3, 4) else x

    model = nn.Sequential(Calling(sometimes), nn.Linear(4, 1))
    _, trace = recorded(
        tmp_path, model, torch.optim.SGD(model.parameters(), lr=0.1), steps=7
    )
    assert [held.unexplained_draws for held in trace] == [
        *((), (), ("0",), (), (), (), ())
    ]
    assert [len(held.draws) for held in trace] == [0, 0, 0, 1, 1, 0, 0]


def test_what_is_not_to_be_kept_is_named(tmp_path):
    model = nn.Sequential(Calling(torch.rand_like), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    _, trace = recorded(tmp_path, model, optimizer, keep=["loss"])
    assert trace[0].draws == ()
    assert trace[0].unexplained_draws == ("0",)


def test_the_gradient_draws_nothing(tmp_path):
    """What a checkpoint computes anew during the backward pass is not drawn twice."""

    class Checkpointed(nn.Module):
        def __init__(self):
            """Make the layers."""
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 1), Calling(torch.rand_like))

        def forward(self, x):
            return checkpoint(self.body, x, use_reentrant=False)

    _, trace = recorded(tmp_path, *setup(Checkpointed))
    assert [draw.module for draw in trace[0].draws] == ["body.1"]
    assert trace[0].unexplained_draws == ()


def test_draws_are_in_order_and_under_their_module(tmp_path):
    class Noisy(nn.Module):
        def __init__(self):
            """Make the layers."""
            super().__init__()
            self.fc = nn.Linear(4, 1)
            self.quiet = nn.Dropout(0.5).eval()
            self.alpha = nn.AlphaDropout(0.5)
            self.drop = nn.Dropout(0.5)

        def train(self, mode=True):
            return super().train(mode)

        def forward(self, x):
            x = self.drop(x + torch.randn_like(x))
            return self.fc(self.alpha(self.quiet(F.dropout(x))))

    model, optimizer = setup(Noisy)
    with record(tmp_path, model, optimizer) as run:
        with run.step():
            torch.rand(2)
            step(model, optimizer)
            model(X)
    (held,) = open_trace(tmp_path)
    each_call = [("drop", ""), ("", "1"), ("alpha", "0")]
    masks = [(mask.module, mask.output) for mask in held.masks]
    assert masks == [*each_call, *each_call]
    assert [mask.call for mask in held.masks] == [0, 0, 0, 1, 1, 1]
    draws = [(draw.module, draw.call, draw.output) for draw in held.draws]
    assert draws == [("(outside the model)", 0, "0"), ("", 0, "0"), ("", 1, "0")]
    assert held.unexplained_draws == ()


def test_draws_of_other_kernels_are_named(tmp_path):
    """One that draws as it computes does not show what it drew."""

    class Noisy(nn.Module):
        def __init__(self):
            """Make the layers."""
            super().__init__()
            self.fc = nn.Linear(4, 1)
            self.slope = nn.RReLU()

        def forward(self, x):
            return self.fc(self.slope(x))

    _, trace = recorded(tmp_path, *setup(Noisy))
    assert trace[0].unexplained_draws == ("slope",)
    assert trace[0].draws == trace[0].masks == ()
