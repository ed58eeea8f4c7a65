"""Hold a layer in NNX and in Linen against torch's: values, gradients, and weights."""

import copy
from fnmatch import fnmatch
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from jaxclip.convert import from_torch, to_torch

# Of the largest element: the same sums of a hundred products, in another order.
TOLERANCES = {"float32": 1e-5, "float64": 1e-13}


def check_layer(
    source,
    nnx_layer,
    linen_layer,
    *inputs,
    channels_last=False,
    ignore=(),
    buffers=True,
    signed=False,
    dtypes=tuple(TOLERANCES),
):
    """Check a torch layer against its two Flax counterparts, in two precisions.

    Compared are the outputs, the gradients of every parameter and of every input,
    and the buffers after the call; and the weights make the round trip to the bit.

    Args:
        source: The torch layer. Its parameters and buffers are drawn anew.
        nnx_layer: A function ``(rngs=, param_dtype=) -> NNX module``, or None.
        linen_layer: A function ``(param_dtype=) -> Linen module``, or None.
        inputs: Arrays in torch's layout; integers are passed on as they are.
        channels_last: Whether axis 1 of torch's inputs and outputs is Flax's last.
        ignore: Patterns of the names that the Flax layers have nowhere to put.
        buffers: Whether the buffers after the call are to agree.
        signed: Whether the numbers that are drawn are of both signs. A sum of positive
            weights alone would saturate every gate and every softmax.
        dtypes: The precisions.
    """
    randomise(source, signed=signed)
    for dtype in dtypes:
        typed = copy.deepcopy(source).to(getattr(torch, dtype))
        given = [cast(array, dtype) for array in inputs]
        expected = run_torch(copy.deepcopy(typed), given)
        cotangents = [cotangent(output) for output in expected["outputs"].values()]
        if channels_last:
            given = [np.moveaxis(array, 1, -1) for array in given]
            cotangents = [np.moveaxis(array, 1, -1) for array in cotangents]
        for framework, layer in (("nnx", nnx_layer), ("linen", linen_layer)):
            if layer is None:
                continue
            label = f"{framework}, {dtype}"
            run = run_nnx if framework == "nnx" else run_linen
            with jax.enable_x64(dtype == "float64"):
                converted, actual = run(layer, typed, given, cotangents, dtype, ignore)
            check_round_trip(converted, typed, ignore, label)
            if channels_last:
                for part in ("outputs", "inputs"):
                    actual[part] = {
                        name: np.moveaxis(array, -1, 1)
                        for name, array in actual[part].items()
                    }
            for part in expected:
                if part == "buffers" and not buffers:
                    continue
                theirs = without(expected[part], ignore)
                assert_close(
                    actual[part], theirs, TOLERANCES[dtype], f"{label}, {part}"
                )


def randomise(module, seed=0, *, signed=False):
    """Draw every parameter and floating buffer of a torch module anew.

    Zeros and ones would hide what is swapped or left out. All are positive unless
    ``signed``, since some are variances.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                drawn = torch.rand(tensor.shape, generator=generator)
                tensor.copy_(2 * drawn - 1 if signed else drawn + 0.5)
            else:
                tensor.fill_(7)


def normal(*shape, seed=1):
    """Draw an array from the standard normal distribution."""
    return np.random.default_rng(seed).normal(size=shape)


def cotangent(output):
    """Draw what the gradients start from."""
    return normal(*output.shape, seed=output.size).astype(output.dtype)


def cast(array, dtype):
    """Cast an array unless it holds integers."""
    return array.astype(dtype) if array.dtype.kind == "f" else array


def without(named, patterns):
    """Leave out the names that match a pattern."""
    return {
        name: value
        for name, value in named.items()
        if not any(fnmatch(name, pattern) for pattern in patterns)
    }


def run_torch(module, inputs):
    """Return the outputs, gradients and buffers that torch gives."""
    tensors = [torch.tensor(array) for array in inputs]
    floating = [t.requires_grad_() for t in tensors if t.is_floating_point()]
    outputs = jax.tree.leaves(module(*tensors))
    values = numbered(output.detach() for output in outputs)
    starts = [torch.tensor(cotangent(value)) for value in values.values()]
    torch.autograd.backward(outputs, starts)
    return {
        "outputs": values,
        "inputs": numbered(tensor.grad for tensor in floating),
        "weights": {name: p.grad.numpy() for name, p in module.named_parameters()},
        "buffers": {name: b.numpy() for name, b in module.named_buffers()},
    }


def run_nnx(layer, source, inputs, cotangents, dtype, ignore):
    """Convert into an NNX layer; return it, and of it what `run_torch` returns."""
    target = nnx.eval_shape(lambda: layer(rngs=nnx.Rngs(0), param_dtype=dtype))
    graphdef, state = nnx.split(target)
    target = nnx.merge(graphdef, floating_to(dtype, state))
    converted = from_torch(target, source, ignore=ignore)
    graphdef, params, rest = nnx.split(converted, nnx.Param, ...)

    def apply(params, *inputs):
        # A copy: the call may write to it.
        module = nnx.merge(graphdef, params, rest, copy=True)
        outputs = module(*inputs)
        return outputs, nnx.split(module, nnx.Param, ...)[2]

    outputs, after, grads, input_grads = pull_back(apply, params, inputs, cotangents)
    return converted, {
        "outputs": outputs,
        "inputs": input_grads,
        "weights": named(
            nnx.merge(graphdef, grads, rest, copy=True), source, "parameters"
        ),
        "buffers": named(nnx.merge(graphdef, params, after), source, "buffers"),
    }


def run_linen(layer, source, inputs, cotangents, dtype, ignore):
    """Convert into a Linen layer; return it, and of it what `run_torch` returns."""
    module = layer(param_dtype=dtype)
    variables = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    target = module, floating_to(dtype, variables)
    converted = from_torch(target, source, ignore=ignore)
    rest = {name: tree for name, tree in converted[1].items() if name != "params"}

    def apply(params, *inputs):
        return module.apply({"params": params, **rest}, *inputs, mutable=list(rest))

    params = converted[1].get("params", {})
    outputs, after, grads, input_grads = pull_back(apply, params, inputs, cotangents)
    return converted, {
        "outputs": outputs,
        "inputs": input_grads,
        "weights": named((module, {"params": grads, **rest}), source, "parameters"),
        "buffers": named((module, {"params": params, **after}), source, "buffers"),
    }


def floating_to(dtype, tree):
    """Cast what is floating: Flax keeps statistics in float32 whatever is asked."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape,
            dtype if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype,
        ),
        tree,
    )


def pull_back(apply, params, inputs, cotangents):
    """Return outputs, buffers, and the gradients of parameters and inputs."""
    places = [i for i, array in enumerate(inputs) if array.dtype.kind == "f"]

    def run(params, floating):
        values = dict(enumerate(inputs)) | dict(zip(places, floating, strict=True))
        return apply(params, *values.values())

    # It runs once, and takes LLVM longer to optimise than to run.
    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def outputs_and_grads(params, floating, cotangents):
        outputs, pull, rest = jax.vjp(run, params, floating, has_aux=True)
        starts = jax.tree.unflatten(jax.tree.structure(outputs), cotangents)
        return jax.tree.leaves(outputs), rest, *pull(starts)

    floating = [inputs[place] for place in places]
    outputs, rest, grads, input_grads = outputs_and_grads(params, floating, cotangents)
    return numbered(outputs), rest, grads, numbered(input_grads)


def numbered(arrays):
    """Name arrays by their place."""
    return {str(index): np.asarray(array) for index, array in enumerate(arrays)}


def named(target, source, kind):
    """Return the arrays in a Flax layer that torch counts to a kind, by its names."""
    arrays = to_torch(target)
    names = {name for name, _ in getattr(source, f"named_{kind}")()}
    return {name: arrays[name].numpy() for name in arrays if name in names}


def check_round_trip(converted, source, ignore, label):
    """Check that torch takes the weights back, each as it was to the bit."""
    returned, expected = to_torch(converted), source.state_dict()
    assert returned.keys() == without(expected, ignore).keys(), label
    fresh = copy.deepcopy(source)
    randomise(fresh, seed=5)
    fresh.load_state_dict(returned, strict=True)
    for name, tensor in without(fresh.state_dict(), ignore).items():
        assert tensor.dtype == expected[name].dtype, f"{label}: {name}"
        same = tensor.numpy().tobytes() == expected[name].numpy().tobytes()
        assert same, f"{label}: {name} is not what it was"


def assert_close(actual, expected, tolerance, label):
    """Check that the same arrays are there, and that each is close."""
    assert actual.keys() == expected.keys(), label
    for name, theirs in expected.items():
        ours = actual[name]
        assert ours.shape == theirs.shape, f"{label}, {name}"
        assert ours.dtype == theirs.dtype, f"{label}, {name}"
        error = np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1.0)
        assert error <= tolerance, f"{label}, {name}: error {error:.1e}"
