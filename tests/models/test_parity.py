"""The Flax models compute what torch's compute: outputs, states, every gradient."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from jaxclip import convert

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
    else:
        outputs = [model(inputs.to(dtype))]
    loss = sum((o * torch.as_tensor(w).to(dtype)).sum() for o, w in weighted(outputs))
    loss.backward()
    results = {f"output {i}": o for i, o in enumerate(outputs)}
    results |= {name: p.grad for name, p in model.named_parameters()}
    return {name: t.detach().double().numpy() for name, t in results.items()}


def flax_run(model, trio, dtype):
    """Return outputs and gradients, named and laid out as torch's, as float64."""
    inputs = jnp.asarray(trio.inputs())

    def loss(model):
        if trio.recurrent:
            logits, state = call(model, inputs[:, :3])
            more_logits, state = call(model, inputs[:, 3:], state)
            outputs = [logits, more_logits, *flat(state)]
        else:
            outputs = [call(model, inputs.astype(dtype))]
        total = sum(jnp.sum(o * w.astype(dtype)) for o, w in weighted(outputs))
        return total, outputs

    outputs, grads = differentiate(loss, model)
    results = {f"output {i}": np.asarray(o, "d") for i, o in enumerate(outputs)}
    # Gradients have the names and the layout of the parameters.
    state_dict = convert.to_torch(grads)
    return results | {name: t.double().numpy() for name, t in state_dict.items()}


def call(model, *args):
    """Apply an NNX module or a Linen (module, variables) pair."""
    if isinstance(model, tuple):
        module, variables = model
        return module.apply(variables, *args)
    return model(*args)


def differentiate(loss, model):
    """Return what ``loss`` returns beside the loss, and a model of gradients."""
    if isinstance(model, tuple):
        module, params = model
        rebuilt = lambda params: (module, params)  # noqa: E731
    else:
        graph, params = nnx.split(model)
        rebuilt = lambda params: nnx.merge(graph, params)  # noqa: E731
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
    "trio", ["my_net", "scratch", "rnn-2", "gru-2", "lstm-2"], indirect=True
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
    inputs = jnp.asarray(trio.inputs(), None if trio.recurrent else "bfloat16")
    outputs = jax.eval_shape(lambda: call(model, inputs))
    assert {str(output.dtype) for output in jax.tree.leaves(outputs)} == {"bfloat16"}
