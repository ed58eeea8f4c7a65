"""Optimizers are recorded as they are."""

import torch
from torch.nn import functional as F

from tests.parity.loops import X, Y, recorded, setup
from torchref.my_linear import my_net


def test_an_optimizer_gains_no_state_by_being_looked_at(tmp_path):
    model, optimizer = setup(my_net)

    def take(model, optimizer):
        model[0](X).sum().backward()
        optimizer.step()
        assert model[1].weight not in optimizer.state

    recorded(tmp_path, model, optimizer, take=take, steps=2)


def test_hyperparameters_are_those_that_the_optimizer_used(tmp_path):
    def take(model, optimizer):
        F.mse_loss(model(X), Y).backward()
        optimizer.param_groups[0]["lr"] = 0.5
        optimizer.step()
        optimizer.param_groups[0]["lr"] = 7.0

    _, (held,) = recorded(tmp_path, *setup(my_net), take=take)
    assert held.hyperparameters[0]["lr"] == 0.5


def test_the_names_of_an_optimizer_are_no_hyperparameters(tmp_path):
    model, _ = setup(my_net)
    optimizer = torch.optim.Adam(model.named_parameters(), torch.tensor(0.25))
    _, (held,) = recorded(tmp_path, model, optimizer)
    (group,) = held.hyperparameters
    assert group.keys() == {*optimizer.defaults}
    assert (group["lr"], group["betas"], group["fused"]) == (0.25, [0.9, 0.999], None)
