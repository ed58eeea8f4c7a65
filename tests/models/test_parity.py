"""The Flax models compute what torch's compute: outputs, states, every gradient."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from jaxclip import convert
from tests.trios import named_parameters

# Halves the time to compile; the results are rounded like any others.
QUICK_COMPILATION = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}


def torch_run(model, trio, dtype):
    """Return outputs and gradients by name, as float64."""
    inputs = torch.as_tensor(trio.inputs())
    if trio.recurrent:
        # The first half starts from no state, the second from what that returned.
        logits, state = model(inputs[:, :3])
        more_logits, state = model(inputs[:, 3:], state)
        outputs = [logits, more_logits, *flat(state)]
    elif trio.takes == "images":
        outputs = [model.eval()(inputs.to(dtype))]
    else:
        outputs = [model(inputs if trio.takes == "tokens" else inputs.to(dtype))]
    loss = sum((o * torch.as_tensor(w).to(dtype)).sum() for o, w in weighted(outputs))
    loss.backward()
    results = {f"output {i}": o for i, o in enumerate(outputs)}
    results |= {name: p.grad for name, p in named_parameters(model).items()}
    return {name: t.detach().double().numpy() for name, t in results.items()}


def flax_run(model, trio, dtype):
    """Return outputs and gradients, named and laid out as torch's, as float64."""
    inputs = flax_inputs(trio, dtype)

    def loss(model):
        if trio.recurrent:
            logits, state = call(model, inputs[:, :3])
            more_logits, state = call(model, inputs[:, 3:], state)
            outputs = [logits, more_logits, *flat(state)]
        else:
            outputs = [call(model, inputs, **evaluation(model, trio))]
        total = sum(jnp.sum(o * w.astype(dtype)) for o, w in weighted(outputs))
        return total, outputs

    outputs, grads = differentiate(loss, model)
    results = {f"output {i}": np.asarray(o, "d") for i, o in enumerate(outputs)}
    # Gradients have the names and the layout of the parameters.
    state_dict = without_statistics(convert.to_torch(grads))
    return results | {name: t.double().numpy() for name, t in state_dict.items()}


def flax_inputs(trio, dtype):
    """Return what a Flax model takes, in its layout and dtype."""
    inputs = trio.for_flax(trio.inputs())
    return inputs if trio.takes == "tokens" else inputs.astype(dtype)


def evaluation(model, trio):
    """Return the arguments that say that running averages are to be used."""
    if trio.takes != "images":
        return {}
    if isinstance(model, tuple):
        return {"train": False}
    model.eval()
    return {}


def without_statistics(state_dict):
    """Leave out running averages, which have no gradients."""
    endings = ("running_mean", "running_var", "num_batches_tracked")
    return {name: t for name, t in state_dict.items() if not name.endswith(endings)}


def call(model, *args, **options):
    """Apply an NNX module or a Linen (module, variables) pair."""
    if isinstance(model, tuple):
        module, variables = model
        return module.apply(variables, *args, **options)
    return model(*args, **options)


def differentiate(loss, model):
    """Return what ``loss`` returns beside the loss, and a model of gradients."""
    if isinstance(model, tuple):
        module, variables = model
        params, rest = variables["params"], {**variables, "params": None}
        rebuilt = lambda params: (module, {**rest, "params": params})  # noqa: E731
    else:
        graph, params, rest = nnx.split(model, nnx.Param, ...)
        rebuilt = lambda params: nnx.merge(graph, params, rest, copy=True)  # noqa: E731
    grad = jax.grad(lambda params: loss(rebuilt(params)), has_aux=True)
    run = jax.jit(grad, compiler_options=QUICK_COMPILATION)
    grads, aux = run(params)
    return aux, rebuilt(grads)


def flat(state):
    return state if isinstance(state, tuple) else (state,)


def weighted(outputs):
    """Pair each output with fixed numbers, so that every element has its own weight."""
    rng = np.random.default_rng(1)
    return [(output, rng.normal(size=tuple(output.shape))) for output in outputs]


def assert_same(actual, expected, rtol):
    assert sorted(actual) == sorted(expected)
    for name, value in expected.items():
        scale = np.abs(value).max()
        assert scale > 0, name
        np.testing.assert_allclose(
            actual[name], value, rtol=0, atol=rtol * scale, err_msg=name, strict=True
        )


def assert_within_noise(torch_low, jax_low, jax_high, dtype):
    """Hold torch's rounding against that of the port, measured against float64."""
    assert sorted(torch_low) == sorted(jax_low) == sorted(jax_high)
    for name, exact in jax_high.items():
        noise = np.linalg.norm(jax_low[name] - exact)
        floor = 4 * float(jnp.finfo(dtype).eps) * np.linalg.norm(exact)
        distance = np.linalg.norm(torch_low[name] - exact)
        assert distance <= 4 * max(noise, floor), name


@pytest.mark.parametrize("framework", ["nnx", "linen"])
def test_outputs_and_gradients_are_torchs_in_float64(trio, framework):
    source = trio.torch_model(torch.float64)
    with jax.enable_x64(True):
        model = getattr(trio, f"{framework}_model")(source, "float64")
        actual = flax_run(model, trio, "float64")
    expected = torch_run(source, trio, torch.float64)
    # float64 settles whether the algorithm is the same: what is left is rounding.
    assert_same(actual, expected, rtol=1e-13)


# Linen runs the same functions, and one or three layers the same as two.
@pytest.mark.parametrize(
    "trio", ["my_net", "scratch", "rnn-2", "gru-2", "lstm-2", "gpt"], indirect=True
)
def test_in_low_precision_torch_differs_by_no_more_than_rounding(trio):
    # Weights that every dtype holds exactly.
    exact = trio.torch_model(torch.bfloat16).to(torch.float64)
    with jax.enable_x64(True):
        jax_high = flax_run(trio.nnx_model(exact, "float64"), trio, "float64")
    for dtype in (torch.float32, torch.bfloat16):
        source, name = copy.deepcopy(exact).to(dtype), str(dtype).removeprefix("torch.")
        jax_low = flax_run(trio.nnx_model(source, name), trio, name)
        torch_low = torch_run(source, trio, dtype)
        assert_within_noise(torch_low, jax_low, jax_high, name)


@pytest.mark.parametrize("framework", ["nnx", "linen"])
def test_models_compute_in_the_dtype_of_their_parameters(trio, framework):
    source = trio.torch_model(torch.bfloat16)
    model = getattr(trio, f"{framework}_model")(source, "bfloat16")
    inputs, mode = flax_inputs(trio, "bfloat16"), evaluation(model, trio)
    outputs = jax.eval_shape(lambda: call(model, inputs, **mode))
    assert {str(output.dtype) for output in jax.tree.leaves(outputs)} == {"bfloat16"}
