"""The recurrences, against loops over NumPy arrays, and the mistakes of porters."""

import jax
import numpy as np
import pytest
import torch

from jaxclip.models import _cells
from jaxclip.models._recurrence import Stack

INPUTS, HIDDEN, BATCH, STEPS = 3, 4, 2, 5
CELLS = {
    "rnn": (_cells.RNN["tanh"], torch.nn.RNN),
    "gru": (_cells.GRU, torch.nn.GRU),
    "lstm": (_cells.LSTM, torch.nn.LSTM),
}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def rnn_step(x, h, c, w_ih, w_hh, b_ih, b_hh):
    return np.tanh(w_ih @ x + b_ih + w_hh @ h + b_hh), c


def gru_step(x, h, c, w_ih, w_hh, b_ih, b_hh):
    input_r, input_z, input_n = np.split(w_ih @ x + b_ih, 3)
    hidden_r, hidden_z, hidden_n = np.split(w_hh @ h + b_hh, 3)
    r, z = sigmoid(input_r + hidden_r), sigmoid(input_z + hidden_z)
    n = np.tanh(input_n + r * hidden_n)
    return (1 - z) * n + z * h, c


def lstm_step(x, h, c, w_ih, w_hh, b_ih, b_hh):
    i, f, g, o = np.split(w_ih @ x + b_ih + w_hh @ h + b_hh, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


STEP = {"rnn": rnn_step, "gru": gru_step, "lstm": lstm_step}


def oracle(cell, weights, x, h, c):
    """Run one sequence through every layer, one step and one vector at a time."""
    last_h, last_c = [], []
    for layer in range(len(h)):
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        arrays = [weights[f"{name}_l{layer}"] for name in names]
        state, outputs = (h[layer], c[layer]), []
        for vector in x:
            state = STEP[cell](vector, *state, *arrays)
            outputs.append(state[0])
        x = outputs
        last_h.append(state[0])
        last_c.append(state[1])
    return np.array(x), np.array(last_h), np.array(last_c)


def stack(cell, num_layers):
    return Stack(CELLS[cell][0], INPUTS, HIDDEN, num_layers)


def problem(cell, num_layers=2, seed=0):
    """Draw weights, inputs and a state."""
    rng = np.random.default_rng(seed)
    shapes = stack(cell, num_layers).weight_shapes()
    weights = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    x = rng.normal(size=(BATCH, STEPS, INPUTS))
    h, c = rng.normal(size=(2, num_layers, BATCH, HIDDEN))
    return weights, x, h, c


def run(cell, weights, x, state):
    """Run in float64, and return NumPy arrays."""
    with jax.enable_x64(True):
        weights = jax.tree.map(jax.numpy.asarray, weights)
        num_layers = sum(name.startswith("weight_ih") for name in weights)
        outputs, state = stack(cell, num_layers).run(
            weights, x, state, dropout=lambda hidden: hidden
        )
        return np.asarray(outputs), jax.tree.map(np.asarray, state)


@pytest.mark.parametrize("given_state", [True, False])
@pytest.mark.parametrize("cell", CELLS)
def test_a_stack_of_layers_is_a_loop_over_layers_steps_and_sequences(cell, given_state):
    weights, x, h, c = problem(cell)
    state = None
    if given_state:
        state = (h, c) if cell == "lstm" else h
    else:
        h, c = np.zeros_like(h), np.zeros_like(c)
    outputs, last = run(cell, weights, x, state)
    for b in range(BATCH):
        expected, last_h, last_c = oracle(cell, weights, x[b], h[:, b], c[:, b])
        np.testing.assert_allclose(outputs[b], expected, rtol=1e-12)
        if cell == "lstm":
            np.testing.assert_allclose(last[0][:, b], last_h, rtol=1e-12)
            np.testing.assert_allclose(last[1][:, b], last_c, rtol=1e-12)
        else:
            np.testing.assert_allclose(last[:, b], last_h, rtol=1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_names_and_shapes_are_torchs(cell):
    expected = CELLS[cell][1](INPUTS, HIDDEN, 3).state_dict()
    shapes = stack(cell, 3).weight_shapes()
    assert list(shapes) == list(expected)
    assert shapes == {name: tuple(t.shape) for name, t in expected.items()}


def distance_from_torch(cell, weights, x):
    """Run torch on its own weights and the port on ``weights``; 0 where they agree."""
    right, _, _, _ = problem(cell, num_layers=1)
    model = CELLS[cell][1](INPUTS, HIDDEN, batch_first=True, dtype=torch.float64)
    model.load_state_dict({name: torch.tensor(a) for name, a in right.items()})
    expected = model(torch.tensor(x))[0].detach().numpy()
    return np.abs(run(cell, weights, x, None)[0] - expected).max()


def swap_gates(weights, first, second):
    """Exchange the rows of two gates in every array."""
    rows = np.arange(len(weights["bias_ih_l0"])).reshape(-1, HIDDEN)
    rows[[first, second]] = rows[[second, first]]
    return {name: array[rows.ravel()] for name, array in weights.items()}


@pytest.mark.parametrize(
    ("cell", "first", "second"),
    [
        *(("gru", *pair) for pair in [(0, 1), (0, 2), (1, 2)]),
        *(("lstm", *pair) for pair in [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]),
    ],
)
def test_no_two_gates_can_change_places_unseen(cell, first, second):
    weights, x, _, _ = problem(cell, num_layers=1)
    assert distance_from_torch(cell, weights, x) < 1e-13
    assert distance_from_torch(cell, swap_gates(weights, first, second), x) > 1e-2


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bias", ["bias_ih_l0", "bias_hh_l0"])
def test_neither_bias_can_be_dropped_unseen(cell, bias):
    weights, x, _, _ = problem(cell, num_layers=1)
    weights[bias] = np.zeros_like(weights[bias])
    assert distance_from_torch(cell, weights, x) > 1e-2


def test_the_two_biases_add_up_but_for_the_one_inside_the_reset_gate():
    for cell, exact in [("rnn", True), ("lstm", True), ("gru", False)]:
        weights, x, _, _ = problem(cell, num_layers=1)
        weights["bias_ih_l0"] += weights["bias_hh_l0"]
        weights["bias_hh_l0"] = np.zeros_like(weights["bias_hh_l0"])
        distance = distance_from_torch(cell, weights, x)
        assert distance < 1e-13 if exact else distance > 1e-2
