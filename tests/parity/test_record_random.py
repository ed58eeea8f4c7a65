"""Masks of dropout are recorded, and other random numbers named."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from jaxclip.parity import open_trace, record
from jaxclip.parity._torch._random import Generators, dropout_mask, same_state
from tests.parity.loops import X, Y, recorded, setup, step


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


def test_draws_that_no_mask_explains_are_named(tmp_path):
    class Noisy(nn.Module):
        def __init__(self):
            """Make the layers."""
            super().__init__()
            self.fc = nn.Linear(4, 1)
            self.quiet = nn.Dropout(0.5).eval()
            self.alpha = nn.AlphaDropout(0.5)

        def train(self, mode=True):
            return super().train(mode)

        def forward(self, x):
            x = x + torch.randn_like(x)
            return self.fc(self.alpha(self.quiet(x)))

    model, optimizer = setup(Noisy)
    with record(tmp_path, model, optimizer) as run:
        with run.step():
            step(model, optimizer)
        with run.step():
            model.eval()
            F.mse_loss(model.fc(X), Y).backward()
            torch.rand(1)
        with run.step():
            F.mse_loss(model.fc(X), Y).backward()
    drawn = [held.unexplained_draws for held in open_trace(tmp_path)]
    assert drawn == [("", "alpha"), ("(outside the model)",), ()]
