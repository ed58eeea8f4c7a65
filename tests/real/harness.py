"""What the tests of real networks share: the packages, and both sides of a port."""

import copy
import importlib
import sys
from collections.abc import Callable
from fnmatch import fnmatch
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from jaxclip.convert import WeightMap, from_torch, mapping
from jaxclip.parity import assert_trees_equal, compare_trees

Arrays = dict[str, np.ndarray]

DIARY = Path(__file__).parents[2] / "docs" / "porting.md"

# Of the largest element of each tensor. The same sums in another order give up to
# 5e-14, in the gradients of a net of six convolutions that normalises batches.
FLOAT64 = 1e-12

# Among a hundred tensors, some of sixteen elements, the noise of one is small by luck:
# 4.1 was measured. A relative error of 1e-5 in one operation gives 9 and more.
FLOAT32 = 8.0


def folder_of(package: str, distribution: str) -> Path:
    """Return where a package lies, which is not imported, or skip the test."""
    spec = find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip(
            f"{distribution} is not installed: `make test-all` brings it, as does "
            f"`pip install --no-deps {distribution}`"
        )
    return Path(spec.submodule_search_locations[0])


def module_of(folder: Path, name: str, **attributes: object) -> ModuleType:
    """Import one module of a package, and not the package.

    Importing a package brings what any of its modules needs, readers of audio files
    say, of which its network needs nothing.

    Args:
        folder: Where the package lies.
        name: The module, ``"package.module"``.
        attributes: What the module looks for in the package.
    """
    package = ModuleType(folder.name)
    package.__path__ = [str(folder)]
    vars(package).update(attributes)
    with mock.patch.dict(sys.modules, {folder.name: package}):
        return importlib.import_module(name)


def check_port(
    source: torch.nn.Module,
    make: Callable[..., nnx.Module],
    path: Path,
    *inputs: np.ndarray,
    constant: str = "",
    **options: object,
) -> None:
    """Hold a port against the torch network: outputs, gradients, buffers, weights.

    In float64 the two must agree, and in float32 torch must be no further from the
    port in float64 than the port itself is. All weights come back to the bit.

    Args:
        source: The torch network with the weights of the file; the port runs in the
            mode, of training or of evaluation, that this is in.
        make: A function ``(param_dtype=) -> NNX module``.
        path: The file of weights.
        inputs: The inputs of both.
        constant: A pattern of the weights on which the output does not depend, whose
            gradients are nothing but rounding on either side.
        options: What ``from_torch`` is told.
    """
    theirs, ours = both("float64", source, make, path, *inputs, **options)
    theirs32, ours32 = both("float32", source, make, path, *inputs, **options)
    compare_trees(theirs32, ours32, ours, factor=FLOAT32).raise_if_different()

    names = [name for name in theirs if fnmatch(name, constant)]
    assert bool(names) == bool(constant), f"constant={constant!r} matches {names}"
    largest = max(np.abs(array).max() for array in theirs.values())
    for gradient in (side.pop(name) for side in (theirs, ours) for name in names):
        assert np.abs(gradient).max() < FLOAT64 * largest, f"{names} are not constant"
    errors = differences(ours, theirs)
    wrong = {name: error for name, error in errors.items() if not error < FLOAT64}
    assert not wrong, wrong

    model = from_torch(make, path, **options)
    weights = mapping(make, path, **options)
    assert_trees_equal(weights.to_torch(nnx.state(model)), dict(source.state_dict()))


def both(
    dtype: str,
    source: torch.nn.Module,
    make: Callable[..., nnx.Module],
    path: Path,
    *inputs: np.ndarray,
    change: Callable[[nnx.Module], None] | None = None,
    **options: object,
) -> tuple[Arrays, Arrays]:
    """Run a torch network and its port in one precision.

    Args:
        dtype: The precision.
        source: As ``check_port`` takes it, as are the others.
        make: The same.
        path: The same.
        inputs: The same.
        change: Called with the port before it runs.
        options: The same.
    """
    source = copy.deepcopy(source).to(getattr(torch, dtype))
    given = [array.astype(dtype) if is_float(array) else array for array in inputs]
    with jax.enable_x64(dtype == "float64"):
        target = partial(make, param_dtype=dtype)
        model = from_torch(target, path, dtype=dtype, **options)
        (model.train if source.training else model.eval)()
        if change is not None:
            change(model)
        weights = mapping(target, path, **options)
        return torch_run(source, *given), flax_run(model, weights, *given)


def torch_run(model: torch.nn.Module, *inputs: np.ndarray) -> Arrays:
    """Return the output, the gradients of inputs and weights, and the buffers."""
    tensors = [torch.tensor(array) for array in inputs]
    floating = [t.requires_grad_() for t in tensors if t.is_floating_point()]
    output = model(*tensors)
    output.backward(torch.tensor(cotangent(output)))
    return {
        "output": output.detach().numpy(),
        **{f"input {n}": tensor.grad.numpy() for n, tensor in enumerate(floating)},
        **{name: weight.grad.numpy() for name, weight in model.named_parameters()},
        **{name: buffer.numpy() for name, buffer in model.named_buffers()},
    }


def flax_run(model: nnx.Module, weights: WeightMap, *inputs: np.ndarray) -> Arrays:
    """Return what ``torch_run`` does, under torch's names and in its layouts."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    places = [n for n, array in enumerate(inputs) if is_float(array)]

    def apply(params, floating):
        given = dict(enumerate(inputs)) | dict(zip(places, floating, strict=True))
        # A copy: the call may write to it.
        called = nnx.merge(graphdef, params, rest, copy=True)
        output = called(*given.values())
        return output, nnx.state(called)

    @jax.jit
    def run(params, floating):
        output, pull, state = jax.vjp(apply, params, floating, has_aux=True)
        return output, state, *pull(jnp.asarray(cotangent(output)))

    floating = [jnp.asarray(inputs[place]) for place in places]
    output, state, grads, input_grads = run(params, floating)
    # The gradients in the place of the weights.
    tensors = weights.to_torch(state) | weights.parameters().to_torch(grads)
    return {
        "output": np.asarray(output),
        **{f"input {n}": np.asarray(grad) for n, grad in enumerate(input_grads)},
        **{name: tensor.numpy() for name, tensor in tensors.items()},
    }


def cotangent(output: torch.Tensor | jax.Array) -> np.ndarray:
    """Draw what the gradients start from: every element has a weight of its own."""
    dtype = str(output.dtype).removeprefix("torch.")
    return np.random.default_rng(0).normal(size=tuple(output.shape)).astype(dtype)


def differences(actual: Arrays, expected: Arrays) -> dict[str, float]:
    """Return the largest difference in each array, of its largest element."""
    assert actual.keys() == expected.keys()
    for name, theirs in expected.items():
        ours = actual[name]
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype), name
    return {
        name: float(np.abs(actual[name] - theirs).max() / (np.abs(theirs).max() or 1))
        for name, theirs in expected.items()
    }


def is_float(array: np.ndarray) -> bool:
    """Say whether an array has a gradient."""
    return array.dtype.kind == "f"


def assert_quoted(*lines: str) -> None:
    """Check that the diary of porting quotes some lines, however it breaks them."""
    diary = " ".join(DIARY.read_text(encoding="utf-8").split())
    for line in lines:
        assert " ".join(line.split()) in diary, line
