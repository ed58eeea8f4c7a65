import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from torchref.rnn import RNNLM, RNNLMScratch

V, H, B, T = 7, 5, 3, 4
CELLS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}
MODELS = {
    "scratch": lambda: RNNLMScratch(V, H),
    **{
        f"{cell}-{layers}": lambda cell=cell, layers=layers: RNNLM(V, H, cell, layers)
        for cell in CELLS
        for layers in (1, 2)
    },
}


def tokens(seed=0, batch_size=B, num_steps=T):
    shape = (batch_size, num_steps)
    return torch.tensor(np.random.default_rng(seed).integers(V, size=shape))


def scratch(seed=0):
    """Make a model whose weights are large enough for every term to matter."""
    torch.manual_seed(seed)
    model = RNNLMScratch(V, H).to(torch.float64)
    for param in model.params:
        param.data.normal_()
    return model


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    model = MODELS[request.param]()
    return model.to(torch.float64)


def leaves(state):
    return state if isinstance(state, tuple) else (state,)


# Every model.


def test_logits_and_state_have_the_shapes_that_are_promised(model):
    logits, state = model(tokens())
    assert logits.shape == (B, T, V)
    if isinstance(model, RNNLMScratch):
        assert state.shape == (B, H)
    else:
        assert isinstance(state, tuple) == isinstance(model.rnn, nn.LSTM)
        assert all(s.shape == (model.rnn.num_layers, B, H) for s in leaves(state))


def test_a_sequence_cut_in_two_gives_the_same_when_the_state_is_carried(model):
    x = tokens()
    whole, whole_state = model(x)
    first, state = model(x[:, :1])
    second, state = model(x[:, 1:], state)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    torch.testing.assert_close(leaves(state), leaves(whole_state))


def test_no_state_is_a_state_of_zeros(model):
    logits, state = model(tokens())
    zeros = tuple(torch.zeros_like(s) for s in leaves(state))
    again, _ = model(tokens(), zeros if isinstance(state, tuple) else zeros[0])
    torch.testing.assert_close(again, logits, rtol=0, atol=0)


def test_rows_of_a_batch_do_not_touch_each_other_and_no_token_sees_the_next(model):
    x = tokens()
    logits, _ = model(x)
    changed = x.clone()
    changed[1, 2] = (changed[1, 2] + 1) % V
    moved = (model(changed)[0] != logits).any(dim=-1)  # (B, T)
    expected = torch.zeros(B, T, dtype=torch.bool)
    expected[1, 2:] = True
    assert moved.tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_tokens_may_be_any_of_torchs_usual_integers(model, dtype):
    expected, _ = model(tokens())
    actual, _ = model(tokens().to(dtype))
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(T,), (B, 0), (B, T, V)])
def test_tokens_of_another_rank_or_of_no_steps_are_refused(model, shape):
    expected = r"tokens has shape \(.*\); it must be \(B, T\), batch first"
    with pytest.raises(ValueError, match=expected):
        model(torch.zeros(shape, dtype=torch.int64))


# The model from scratch.


def test_scratch_is_the_recurrence_step_by_step_in_numpy():
    model = scratch()
    p = {name: value.detach().numpy() for name, value in model.named_parameters()}
    x = tokens().numpy()
    h0 = np.random.default_rng(1).standard_normal((B, H))
    expected = np.empty((B, T, V))
    expected_state = np.empty((B, H))
    for b in range(B):
        h = h0[b]
        for t in range(T):
            h = np.tanh(p["W_xh"][x[b, t]] + h @ p["W_hh"] + p["b_h"])
            expected[b, t] = h @ p["W_hq"] + p["b_q"]
        expected_state[b] = h
    logits, state = model(tokens(), torch.tensor(h0))
    # Float64, values below 10: 1e-12 is a few thousand roundings.
    np.testing.assert_allclose(logits.detach(), expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(state.detach(), expected_state, rtol=0, atol=1e-12)


def test_scratch_equals_torchs_rnn_with_the_same_weights_gradients_too():
    model = scratch()
    theirs = nn.RNN(V, H, batch_first=True).double()
    head = nn.Linear(H, V).double()
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(model.W_xh.T)
        theirs.weight_hh_l0.copy_(model.W_hh.T)
        theirs.bias_ih_l0.copy_(model.b_h)
        theirs.bias_hh_l0.zero_()
        head.weight.copy_(model.W_hq.T)
        head.bias.copy_(model.b_q)
    x, y = tokens(seed=0), tokens(seed=1)

    hidden, their_state = theirs(F.one_hot(x, V).double())
    their_logits = head(hidden)
    logits, state = model(x)
    torch.testing.assert_close(logits, their_logits)
    torch.testing.assert_close(state, their_state[0])

    F.cross_entropy(logits.flatten(0, 1), y.flatten()).backward()
    F.cross_entropy(their_logits.flatten(0, 1), y.flatten()).backward()
    expected = {
        "W_xh": theirs.weight_ih_l0.grad.T,
        "W_hh": theirs.weight_hh_l0.grad.T,
        "b_h": theirs.bias_ih_l0.grad,
        "W_hq": head.weight.grad.T,
        "b_q": head.bias.grad,
    }
    for name, param in model.named_parameters():
        torch.testing.assert_close(param.grad, expected[name], msg=name)


def test_scratch_starts_from_small_weights_and_zero_biases():
    torch.manual_seed(0)
    model = RNNLMScratch(100, 100)
    for weight in (model.W_xh, model.W_hh, model.W_hq):
        assert weight.shape == (100, 100)
        # 10 000 draws: the standard errors are 1e-4 and 7e-5.
        assert abs(weight.mean().item()) < 5e-4
        assert abs(weight.std().item() - 0.01) < 5e-4
    for bias in (model.b_h, model.b_q):
        assert bias.tolist() == [0] * 100


def test_scratch_lists_its_parameters_in_one_order_everywhere():
    model = RNNLMScratch(V, H)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes == {
        "W_xh": (V, H),
        "W_hh": (H, H),
        "b_h": (H,),
        "W_hq": (H, V),
        "b_q": (V,),
    }
    assert list(model.state_dict()) == list(shapes)
    for name, a, b in zip(shapes, model.params, model.parameters(), strict=True):
        assert a is b
        assert a is getattr(model, name)
        assert a.requires_grad
        assert a.is_leaf


def test_scratch_loads_what_another_saved_and_keeps_its_own_tensors():
    source, target = scratch(seed=0), scratch(seed=1)
    before = target.params
    saved = {name: value.float() for name, value in source.state_dict().items()}
    target.load_state_dict(saved)
    assert all(a is b for a, b in zip(before, target.params, strict=True))
    assert all(p.dtype == torch.float64 and p.requires_grad for p in target.params)
    for name, value in target.state_dict().items():
        assert torch.equal(value, saved[name].double())


def test_scratch_names_every_problem_of_a_state_dict_and_loads_nothing():
    model = scratch()
    before = copy.deepcopy(model.state_dict())
    # b_h would broadcast, and a square matrix could be loaded transposed.
    bad = {
        "W_xh": torch.zeros(H, V),
        "b_h": torch.zeros(1),
        "W_hq": torch.zeros(H, V),
        "b_q": torch.zeros(V),
        "rnn.weight": torch.zeros(H, H),
    }
    with pytest.raises(RuntimeError) as caught:
        model.load_state_dict(bad)
    assert str(caught.value).splitlines() == [
        "state_dict does not fit RNNLMScratch(vocab_size=7, hidden_size=5):",
        "  missing: W_hh",
        "  unexpected: rnn.weight",
        "  wrong shape: W_xh is (5, 7), the model's is (7, 5)",
        "  wrong shape: b_h is (1,), the model's is (5,)",
    ]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float32])
def test_scratch_is_cast_in_place_and_still_trains(dtype):
    model = RNNLMScratch(V, H)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model(tokens())[0].sum().backward()
    before = model.params

    assert model.to(dtype) is model
    for param, same in zip(model.params, before, strict=True):
        assert param is same
        assert param.is_leaf
        assert param.requires_grad
        assert param.dtype == param.grad.dtype == dtype

    logits, state = model(tokens())
    assert logits.dtype == state.dtype == model.begin_state(B).dtype == dtype
    optimizer.zero_grad()
    logits.sum().backward()
    optimizer.step()
    # The gradient of the sum with respect to an output bias counts the outputs.
    assert model.b_q.tolist() == [-B * T] * V


def test_scratch_begins_from_zeros_that_need_no_gradient():
    state = RNNLMScratch(V, H).begin_state(B)
    assert state.tolist() == [[0.0] * H] * B
    assert not state.requires_grad


@pytest.mark.parametrize("shape", [(1, H), (B, 1), (1, B, H)])
def test_scratch_refuses_a_state_that_would_only_broadcast(shape):
    expected = r"state has shape \(.*\); for this batch it must be \(B, H\) = \(3, 5\)"
    with pytest.raises(ValueError, match=expected):
        RNNLMScratch(V, H)(tokens(), torch.zeros(shape))


# The model on torch's cells.


@pytest.mark.parametrize("cell", CELLS)
def test_rnnlm_is_built_of_torchs_parts_batch_first(cell):
    model = RNNLM(V, H, cell, num_layers=2)
    assert [name for name, _ in model.named_children()] == [
        "embedding",
        "rnn",
        "output",
    ]
    assert type(model.rnn) is CELLS[cell]
    assert model.rnn.batch_first
    assert model.embedding.weight.shape == (V, H)
    assert model.rnn.weight_ih_l1.shape[1] == H
    assert model.output.weight.shape == (V, H)


def test_rnnlm_gives_the_same_as_its_parts_one_after_the_other():
    torch.manual_seed(0)
    model = RNNLM(V, H, "gru")
    hidden, state = model.rnn(model.embedding(tokens()))
    logits, actual_state = model(tokens())
    assert torch.equal(logits, model.output(hidden))
    assert torch.equal(actual_state, state)


def test_an_untrained_model_predicts_about_as_well_as_a_guess():
    torch.manual_seed(0)
    logits, _ = RNNLMScratch(V, H)(tokens())
    loss = F.cross_entropy(logits.flatten(0, 1), tokens(seed=1).flatten())
    # The weights are about 0.01, so the logits are below 0.01.
    assert abs(loss.item() - math.log(V)) < 0.01


def test_an_unknown_cell_is_refused_with_the_three_that_there_are():
    expected = "cell is 'elman'; it must be one of 'rnn', 'gru', 'lstm'"
    with pytest.raises(ValueError, match=expected):
        RNNLM(V, H, "elman")


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: RNNLMScratch(0, H), "vocab_size"),
        (lambda: RNNLMScratch(V, 0), "hidden_size"),
        (lambda: RNNLM(0, H), "vocab_size"),
        (lambda: RNNLM(V, 0), "hidden_size"),
        (lambda: RNNLM(V, H, num_layers=0), "num_layers"),
    ],
)
def test_a_size_below_one_is_refused(build, name):
    with pytest.raises(ValueError, match=f"{name} is 0; it must be at least 1"):
        build()
