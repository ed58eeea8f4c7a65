import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from torchref.corpus import random_batches, sequential_batches
from torchref.rnn import RNNLM, RNNLMScratch
from torchref.training import (
    detach_state,
    next_token_loss,
    sgd,
    squared_error_loss,
    train,
    train_step,
)

V, H, B, T = 5, 6, 3, 4
MODELS = {
    "scratch": lambda: RNNLMScratch(V, H),
    "rnn": lambda: RNNLM(V, H, "rnn"),
    "gru": lambda: RNNLM(V, H, "gru"),
    "lstm": lambda: RNNLM(V, H, "lstm", num_layers=2),
}


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    return MODELS[request.param]()


def language_batches(count=10, seed=0):
    """Make sequential batches of random tokens, which nothing can be learnt from."""
    tokens = np.random.default_rng(seed).integers(V, size=B * T * count + B + T)
    return list(sequential_batches(tokens, B, T, seed=seed))[:count]


def leaves(state):
    return state if isinstance(state, tuple) else (state,)


def one_weight(value):
    """Make a net with the one weight ``value``: ``y = value * x``."""
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, value)
    return net


# The losses.


def test_the_loss_is_the_mean_cross_entropy_in_nats(model):
    ((inputs, targets),) = language_batches(1)
    logits = model(torch.tensor(inputs))[0].detach().double().numpy()
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = -np.mean(
        [log_p[b, t, targets[b, t]] for b in range(B) for t in range(T)]
    )
    loss, _ = next_token_loss(model, (inputs, targets), None)
    assert loss.shape == ()
    # Float32 against float64: a few roundings of a loss of about 1.6.
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_a_batch_may_be_arrays_or_tensors_and_arrays_may_be_read_only(model):
    (arrays,) = language_batches(1)
    for array in arrays:
        array.flags.writeable = False
    tensors = tuple(map(torch.tensor, arrays))
    narrow = tuple(array.astype(np.int32) for array in arrays)
    losses = {
        next_token_loss(model, batch, None)[0].item()
        for batch in (arrays, tensors, narrow)
    }
    assert len(losses) == 1


def test_the_squared_error_is_a_mean_over_all_elements():
    batch = np.array([[1.0], [2.0]], np.float32), np.array([[0.0], [1.0]], np.float32)
    loss, state = squared_error_loss(one_weight(3.0), batch, "ignored")
    assert loss.item() == (3**2 + 5**2) / 2
    assert state is None


def test_the_squared_error_does_not_broadcast():
    batch = torch.ones(4, 1), torch.ones(4)
    with pytest.raises(ValueError, match=r"y has shape \(4,\), and .* \(4, 1\); they"):
        squared_error_loss(one_weight(1.0), batch, None)


# One step.


def test_without_a_threshold_the_norm_is_measured_and_nothing_is_clipped():
    net = one_weight(1.0)
    batch = torch.ones(1, 1), torch.full((1, 1), 3.0)
    optimizer = sgd(net, 0.25)
    result = train_step(net, optimizer, batch, loss_fn=squared_error_loss)
    # (1 - 3)^2 = 4 and its gradient -4.
    assert (result.loss, result.grad_norm, result.clipped_norm) == (4, 4, 4)
    assert net.weight.item() == 1 + 0.25 * 4


def test_a_threshold_clips_between_backward_and_the_update():
    net = one_weight(1.0)
    batch = torch.ones(1, 1), torch.full((1, 1), 3.0)
    optimizer = sgd(net, 0.25)
    result = train_step(net, optimizer, batch, loss_fn=squared_error_loss, max_norm=0.5)
    assert (result.loss, result.grad_norm) == (4, 4)
    # 1e-6: what torch adds to the norm before it divides.
    assert result.clipped_norm == pytest.approx(0.5, rel=1e-6)
    assert net.weight.item() == pytest.approx(1 + 0.25 * 0.5, rel=1e-6)


def test_the_clipped_norm_is_measured_and_not_taken_to_be_the_threshold():
    net = one_weight(1.0)
    batch = torch.ones(1, 1), torch.full((1, 1), 1 - 2**-21)
    result = train_step(
        net, sgd(net, 0.0), batch, loss_fn=squared_error_loss, max_norm=2**-21
    )
    # Beside so small a norm, what torch adds to it is half of the sum.
    assert result.grad_norm == 2**-20
    expected = 2**-21 * 2**-20 / (2**-20 + 1e-6)
    assert result.clipped_norm == pytest.approx(expected, rel=1e-6)


def test_gradients_do_not_pile_up_from_step_to_step():
    net = one_weight(1.0)
    batch = torch.ones(1, 1), torch.full((1, 1), 3.0)
    optimizer = sgd(net, 0.0)
    norms = [
        train_step(net, optimizer, batch, loss_fn=squared_error_loss).grad_norm
        for _ in range(3)
    ]
    assert norms == [4, 4, 4]


@pytest.mark.parametrize("max_norm", [0.0, 0.01, 0.1])
def test_no_step_is_longer_than_the_learning_rate_times_the_threshold(model, max_norm):
    optimizer = sgd(model, 1.0)
    for batch in language_batches():
        before = torch.cat([p.detach().flatten() for p in model.parameters()])
        result = train_step(model, optimizer, batch, max_norm=max_norm)
        after = torch.cat([p.detach().flatten() for p in model.parameters()])
        assert result.clipped_norm <= max_norm * (1 + 1e-6)
        assert result.clipped_norm < result.grad_norm
        # The update is rounded to the float32 steps of parameters of up to 1.
        assert torch.linalg.vector_norm(after - before) <= max_norm + 1e-6


def test_a_threshold_that_is_not_reached_changes_nothing_to_the_bit():
    runs = []
    for max_norm in (None, 1e6):
        torch.manual_seed(0)
        model = RNNLM(V, H, "gru")
        runs.append(train(model, language_batches(), lr=0.5, max_norm=max_norm))
    for free, bounded in zip(*runs, strict=True):
        assert free.loss == bounded.loss
        assert free.grad_norm == bounded.clipped_norm


@pytest.mark.parametrize("max_norm", [-1.0, math.nan])
def test_a_threshold_that_is_negative_or_nan_is_refused(max_norm):
    model = RNNLMScratch(V, H)
    ((batch),) = language_batches(1)
    with pytest.raises(
        ValueError, match=f"max_norm is {max_norm}; it must be at least"
    ):
        train_step(model, sgd(model, 1.0), batch, max_norm=max_norm)


def test_an_optimizer_of_another_model_is_refused():
    model, other = RNNLMScratch(V, H), RNNLMScratch(V, H)
    ((batch),) = language_batches(1)
    with pytest.raises(ValueError, match="no gradient to any parameter of the optimi"):
        train_step(model, sgd(other, 1.0), batch)


# Clipping a net that did not run: the notebook clips `model`, and `net` ran.


def test_clipping_another_models_parameters_leaves_the_real_gradients_as_they_are():
    net, model = one_weight(1.0), one_weight(1.0)
    (net(torch.full((1, 1), 4.0)) ** 2).sum().backward()  # 2 * 4 * 4 = 32
    norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
    assert norm == 0
    assert net.weight.grad.item() == 32
    nn.utils.clip_grad_norm_(net.parameters(), max_norm=1.0)
    assert net.weight.grad.item() == pytest.approx(1, rel=1e-6)


def test_train_step_clips_what_the_optimizer_updates():
    net = nn.Sequential(one_weight(1.0), one_weight(1.0))
    head = net[1]
    batch = torch.ones(1, 1), torch.full((1, 1), 3.0)
    result = train_step(
        net, sgd(head, 1.0), batch, loss_fn=squared_error_loss, max_norm=1.0
    )
    assert result.grad_norm == 4
    assert net[0].weight.item() == 1
    assert head.weight.item() == pytest.approx(2, rel=1e-6)


# The state.


def test_a_detached_state_has_the_same_values_and_no_graph():
    h, c = torch.ones(2, requires_grad=True) * 2, torch.ones(2, requires_grad=True) * 3
    assert detach_state(None) is None
    assert detach_state(h).grad_fn is None
    assert torch.equal(detach_state(h), h)
    detached = detach_state((h, c))
    assert isinstance(detached, tuple)
    assert [s.grad_fn for s in detached] == [None, None]
    assert torch.equal(detached[0], h)
    assert torch.equal(detached[1], c)


def test_no_gradient_reaches_the_batch_before(model):
    first, second = language_batches(2)
    _, state = next_token_loss(model, first, None)
    for s in leaves(state):
        s.retain_grad()
    result = train_step(model, sgd(model, 1.0), second, state)
    assert all(s.grad is None for s in leaves(state))
    assert all(s.grad_fn is None for s in leaves(result.state))


def test_the_graph_does_not_grow_with_the_number_of_batches(model):
    def count(node, seen):
        if node is not None and node not in seen:
            seen.add(node)
            for following, _ in node.next_functions:
                count(following, seen)
        return len(seen)

    sizes = []

    def counting_loss(*args):
        loss, state = next_token_loss(*args)
        sizes.append(count(loss.grad_fn, set()))
        return loss, state

    train(model, language_batches(5), lr=0.1, loss_fn=counting_loss)
    assert len(set(sizes)) == 1
    assert sizes[0] > T


def test_kept_state_is_the_state_of_the_text_so_far(model):
    batches = language_batches(4)
    results = train(model, batches, lr=0.0)
    text = torch.tensor(np.concatenate([inputs for inputs, _ in batches], axis=1))
    _, expected = model(text)
    torch.testing.assert_close(leaves(results[-1].state), leaves(expected))


def test_without_kept_state_each_batch_starts_afresh(model):
    model.to(torch.float64)  # the state of the small net from scratch hardly shows
    (batch,) = language_batches(1)
    fresh = train(model, [batch] * 3, lr=0.0, keep_state=False)
    kept = train(model, [batch] * 3, lr=0.0, keep_state=True)
    assert len({result.loss for result in fresh}) == 1
    assert len({result.loss for result in kept}) == 3


# A whole run.


@pytest.mark.parametrize("partition", [sequential_batches, random_batches])
def test_training_lowers_the_loss_on_a_text_that_can_be_learnt(model, partition):
    tokens = [0, 1, 2, 3, 4, 3, 2, 1] * 400
    results = train(
        model,
        partition(tokens, 8, 10, seed=0),
        lr=2.0,
        momentum=0.9,
        max_norm=0.25,
        keep_state=partition is sequential_batches,
    )
    # A guess costs ln 5; where the text goes up or down is known after a token or two.
    assert results[0].loss == pytest.approx(math.log(V), rel=0.15)
    assert results[-1].loss < 0.5 * math.log(V)
    assert any(result.clipped_norm < result.grad_norm for result in results)
    assert all(result.clipped_norm <= 0.25 * (1 + 1e-6) for result in results)


def test_each_step_is_reported_as_it_happens():
    reported = []
    results = train(
        RNNLMScratch(V, H),
        language_batches(3),
        lr=0.1,
        on_step=lambda step, result: reported.append((step, result)),
    )
    assert reported == list(enumerate(results))


def test_a_feed_forward_net_trains_too():
    batch = torch.tensor([[1.0], [2.0]]), torch.tensor([[2.0], [4.0]])
    net = one_weight(0.0)
    results = train(net, [batch] * 20, lr=0.1, loss_fn=squared_error_loss)
    assert results[-1].loss < 1e-6
    assert net.weight.item() == pytest.approx(2, abs=1e-3)
    assert results[-1].state is None


def test_training_on_no_batches_takes_no_steps():
    assert train(RNNLMScratch(V, H), [], lr=0.1) == []


def test_sgd_takes_a_net_with_params_and_leaves_out_what_is_frozen():
    params = [torch.ones(2, requires_grad=True)]
    (group,) = sgd(SimpleNamespace(params=params), 0.1, 0.9, 0.01).param_groups
    assert group["params"] == params
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.1, 0.9, 0.01)
    net = nn.Linear(2, 1)
    net.bias.requires_grad_(False)
    (group,) = sgd(net, 0.1).param_groups
    assert [p is net.weight for p in group["params"]] == [True]
