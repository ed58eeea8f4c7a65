"""Recurrent layers and cells, with all that torch's can have."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn
from flax import nnx

from jaxclip import models
from jaxclip.convert import ConversionError, from_torch, to_torch
from jaxclip.models import linen
from tests.convert.layers.harness import check_layer, normal, randomise
from tests.convert.layers.wrapped import wrap

INPUTS, HIDDEN, BATCH, STEPS = 3, 4, 2, 5

# Between them the rows switch on every option of every layer.
LAYERS = [
    ("RNN", {"nonlinearity": "relu", "bidirectional": True}),
    ("RNN", {"num_layers": 2, "bias": False, "batch_first": False}),
    ("GRU", {"num_layers": 2, "bidirectional": True}),
    ("GRU", {"bias": False, "batch_first": False}),
    ("LSTM", {"num_layers": 2, "bidirectional": True, "proj_size": 2}),
    ("LSTM", {"bias": False, "batch_first": False}),
]


def in_torch(name, **options):
    batch_first = {"batch_first": True}
    return getattr(torch.nn, name)(INPUTS, HIDDEN, **(batch_first | options))


# torch says that it takes a slower path for the projection.
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize(("name", "options"), LAYERS)
def test_layers_are_torchs_with_every_option(name, options):
    options = {"num_layers": 1} | options
    rows = options["num_layers"] * (2 if options.get("bidirectional") else 1)
    state = [normal(rows, BATCH, options.get("proj_size") or HIDDEN, seed=2)]
    if name == "LSTM":
        state.append(normal(rows, BATCH, HIDDEN, seed=3))
    axes = (BATCH, STEPS) if options.get("batch_first", True) else (STEPS, BATCH)
    check_layer(
        *wrap(
            with_state,
            in_torch(name, **options),
            partial(getattr(models, name), INPUTS, HIDDEN, **options),
            partial(getattr(linen, name), INPUTS, HIDDEN, **options),
        ),
        normal(*axes, INPUTS),
        *state,
        signed=True,
        dtypes=precisions(options),
    )


@pytest.mark.parametrize("options", [{}, {"bias": False}])
@pytest.mark.parametrize("name", ["RNNCell", "GRUCell", "LSTMCell"])
def test_cells_are_torchs(name, options):
    if name == "RNNCell" and options:
        options = options | {"nonlinearity": "relu"}
    states = 2 if name == "LSTMCell" else 1
    check_layer(
        *wrap(
            with_state,
            getattr(torch.nn, name)(INPUTS, HIDDEN, **options),
            partial(getattr(models, name), INPUTS, HIDDEN, **options),
            partial(getattr(linen, name), INPUTS, HIDDEN, **options),
        ),
        normal(BATCH, INPUTS),
        *(normal(BATCH, HIDDEN, seed=seed) for seed in range(2, 2 + states)),
        signed=True,
        dtypes=precisions(options),
    )


def precisions(options):
    """Return float64, which settles the algorithm, and float32 once for each cell."""
    return ("float32", "float64") if options.get("bias", True) else ("float64",)


def with_state(layer, x, *state):
    return layer(x, state if len(state) > 1 else state[0])


# Dropout between layers.


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_dropout_lies_between_layers_and_only_in_training(name):
    # Dropout of everything is the same in both frameworks, whatever they draw.
    source = in_torch(name, num_layers=2, dropout=1.0)
    randomise(source, signed=True)
    x = normal(BATCH, STEPS, INPUTS).astype("f")
    rngs = nnx.Rngs(0)
    options = {"num_layers": 2, "dropout": 1.0}
    layer = from_torch(
        models.__dict__[name](INPUTS, HIDDEN, **options, rngs=rngs), source
    )
    module = getattr(linen, name)(INPUTS, HIDDEN, **options)
    init = partial(module.init, deterministic=True)
    variables = jax.eval_shape(init, jax.random.key(0), x)
    _, variables = from_torch((module, variables), source)
    for training in (True, False):
        source.train(training)
        layer.train() if training else layer.eval()
        expected = source(torch.tensor(x))[0].detach().numpy()
        key = {"dropout": jax.random.key(0)} if training else {}
        in_linen = module.apply(variables, x, deterministic=not training, rngs=key)
        np.testing.assert_allclose(layer(x)[0], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(in_linen[0], expected, rtol=1e-5, atol=1e-6)
        # The last layer's outputs are not dropped, and the first's matter.
        assert np.abs(expected).min() > 0
    x_changed = torch.tensor(x + 1)
    changes = not np.allclose(source(x_changed)[0].detach().numpy(), expected)
    source.train()
    assert changes
    assert torch.equal(source(x_changed)[0], source(torch.tensor(x))[0])


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_the_inputs_of_the_first_layer_are_not_dropped(name):
    layer = getattr(models, name)(INPUTS, HIDDEN, dropout=1.0, rngs=nnx.Rngs(0))
    x = normal(BATCH, STEPS, INPUTS).astype("f")
    in_training, _ = layer(x)
    layer.eval()
    np.testing.assert_array_equal(in_training, layer(x)[0])


def test_dropout_keeps_the_mean_and_draws_anew_each_time():
    layer = models.RNN(2, 64, num_layers=2, dropout=0.5, rngs=nnx.Rngs(0))
    seen = []
    layer.dropout = record(layer.dropout, seen)
    x = normal(8, 4, 2).astype("f")
    layer(x)
    layer(x)
    (before, after), (_, again) = seen
    kept = after != 0
    np.testing.assert_allclose(after[kept], 2 * before[kept], rtol=1e-6)
    # Five standard deviations of the share that is kept.
    assert abs(kept.mean() - 0.5) < 5 * 0.5 / np.sqrt(kept.size)
    assert (kept != (again != 0)).any()


def record(dropout, seen):
    def recorded(hidden):
        dropped = dropout(hidden)
        seen.append((np.asarray(hidden), np.asarray(dropped)))
        return dropped

    return recorded


def test_linen_is_told_whether_dropout_is_on():
    module = linen.GRU(2, 2, num_layers=2, dropout=0.5)
    with pytest.raises(Exception, match="deterministic"):
        module.init(jax.random.key(0), jnp.zeros((1, 1, 2)))


# What Flax's own cells cannot hold.


def torch_step(name):
    """Return a torch cell with random weights, an input, a state, and the next."""
    cell = getattr(torch.nn, name)(INPUTS, HIDDEN)
    randomise(cell, signed=True)
    x, h = torch.tensor(normal(BATCH, INPUTS)), torch.tensor(normal(BATCH, HIDDEN))
    cell = cell.double()
    weights = {name: tensor.numpy() for name, tensor in cell.state_dict().items()}
    return weights, x.numpy(), h.numpy(), cell(x, h).detach().numpy()


def distance(cell, variables, h, x, expected):
    with jax.enable_x64(True):
        _, actual = cell.apply({"params": jax.tree.map(jnp.asarray, variables)}, h, x)
    return np.abs(np.asarray(actual) - expected).max()


def test_the_two_biases_of_the_plain_cell_add_up():
    weights, x, h, expected = torch_step("RNNCell")
    params = {
        "i": {"kernel": weights["weight_ih"].T, "bias": weights["bias_ih"]},
        "h": {"kernel": weights["weight_hh"].T},
    }
    assert distance(nn.SimpleCell(HIDDEN), params, h, x, expected) > 0.1
    params["i"]["bias"] = weights["bias_ih"] + weights["bias_hh"]
    assert distance(nn.SimpleCell(HIDDEN), params, h, x, expected) < 1e-14


def test_the_hidden_bias_of_the_gru_lies_inside_the_reset_gate():
    weights, x, h, expected = torch_step("GRUCell")
    kernels = {
        f"{side}{gate}": {"kernel": rows.T}
        for side in "ih"
        for gate, rows in zip(
            "rzn", np.split(weights[f"weight_{side}h"], 3), strict=True
        )
    }
    r, z, n = np.split(weights["bias_ih"], 3)
    hidden_r, hidden_z, hidden_n = np.split(weights["bias_hh"], 3)
    biases = {"ir": r + hidden_r, "iz": z + hidden_z}
    inside = biases | {"in": n, "hn": hidden_n}
    outside = biases | {"in": n + hidden_n, "hn": np.zeros(HIDDEN)}

    def params(biases):
        return {
            name: {**kernel, **({"bias": biases[name]} if name in biases else {})}
            for name, kernel in kernels.items()
        }

    cell = nn.GRUCell(HIDDEN)
    assert distance(cell, params(inside), h, x, expected) < 1e-14
    assert distance(cell, params(outside), h, x, expected) > 0.1


def test_the_gru_cell_of_nnx_has_no_bias_inside_the_reset_gate():
    cell = nnx.GRUCell(2, 3, rngs=nnx.Rngs(0))
    assert cell.dense_h.bias is None
    assert cell.dense_i.bias.shape == (9,)


ONE_BIAS = "It has one bias where torch adds two: with their sum the outputs are equal"
NO_BIAS = "It has no bias inside the reset gate, where torch has one, and cannot hold"
INSTEAD = "jaxclip.models has RNN, GRU and LSTM, and RNNCell, GRUCell and LSTMCell, in"


def linen_cell(cell, *carry):
    key = jax.random.key(0)
    return cell, jax.eval_shape(cell.init, key, carry or jnp.zeros(2), jnp.zeros(3))


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (nnx.GRUCell(2, 2, rngs=nnx.Rngs(0)), NO_BIAS),
        (nnx.SimpleCell(2, 2, rngs=nnx.Rngs(0)), ONE_BIAS),
        (nnx.LSTMCell(2, 2, rngs=nnx.Rngs(0)), ONE_BIAS),
        (linen_cell(nn.GRUCell(2)), ONE_BIAS),
        (linen_cell(nn.OptimizedLSTMCell(2), jnp.zeros(2), jnp.zeros(2)), ONE_BIAS),
        (nnx.RNN(nnx.LSTMCell(2, 2, rngs=nnx.Rngs(0))), INSTEAD),
    ],
    ids=lambda value: "" if isinstance(value, str) else type(value).__name__,
)
def test_stock_recurrent_layers_are_refused_with_the_reason(target, reason):
    for convert in (to_torch, lambda target: from_torch(target, {})):
        with pytest.raises(ConversionError, match="has no rule") as caught:
            convert(target)
        [problem] = caught.value.problems
        assert f"has no rule. {reason}" in problem
        assert INSTEAD in problem
