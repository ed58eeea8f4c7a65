"""A net of two layers in torch and in JAX: its gradients, before and after clipping."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import nn

import jaxclip
from jaxclip import convert, models
from jaxclip.demo._history import Array
from jaxclip.demo._ways import FORMULAS, Formula, JaxClip, TorchClip
from jaxclip.parity import TreeComparison, compare_trees
from torchref.my_linear import my_net

Gradients = dict[str, Array]
"""A gradient for each parameter, under torch's names and in torch's layout."""


@dataclass(frozen=True)
class Parameter:
    """One parameter, as each framework calls and shapes it."""

    torch_name: str
    torch_shape: tuple[int, ...]
    jax_name: str
    jax_shape: tuple[int, ...]


@dataclass(frozen=True)
class Way:
    """What one way to clip made of the gradients.

    Attributes:
        name: What does it.
        formula: What it scales by, where the norm is too large.
        grads: The clipped gradients.
        comparison: They, held against torch's; None for torch's own.
    """

    name: str
    formula: str
    grads: Gradients
    comparison: TreeComparison | None


@dataclass(frozen=True)
class NetComparison:
    """The net in torch and in JAX, with the same weights.

    Attributes:
        parameters: Its parameters.
        torch_grads: The gradients of its output in torch.
        jax_grads: The same in JAX.
        torch_norm: Their norm, as torch computes it.
        jax_norm: The same in JAX.
        comparison: The gradients and the norm in JAX, held against torch's.
        ways: The clipped gradients. Of each formula, torch's own function comes first.
    """

    parameters: tuple[Parameter, ...]
    torch_grads: Gradients
    jax_grads: Gradients
    torch_norm: float
    jax_norm: float
    comparison: TreeComparison
    ways: tuple[Way, ...]

    @property
    def comparisons(self) -> dict[str, TreeComparison]:
        """Everything that was compared, by name."""
        compared = {"the gradients": self.comparison}
        for way in self.ways:
            if way.comparison is not None:
                compared[way.name] = way.comparison
        return compared

    @property
    def equal(self) -> bool:
        """Whether the gradients, clipped or not, differ by rounding alone."""
        return all(self.comparisons.values())

    def __str__(self) -> str:
        """Say the verdict, and what it rests on."""
        if not self.equal:
            failures = (
                f"{name}: {comparison}"
                for name, comparison in self.comparisons.items()
                if not comparison
            )
            return "NOT equal: " + "\n".join(failures)
        grads, *clipped = map(max_ulps, self.comparisons.values())
        return (
            f"equal, up to rounding: the gradients differ by at most {grads} ulps, "
            f"the clipped gradients by at most {max(clipped)} ulps"
        )


def compare_nets(seed: int) -> NetComparison:
    """Build the net in both frameworks, and clip its gradients by every way.

    Args:
        seed: Draws the weights; torch's random state is left as it was.

    Returns:
        What came out, and how far apart it is.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = my_net()
    torch_grads, jax_grads = _torch_grads(net), _jax_grads(net)
    torch_norm = nn.utils.get_total_norm(map(torch.from_numpy, torch_grads.values()))
    jax_norm = jaxclip.global_norm(jax_grads)
    exact = _jax_grads(net, dtype="float64")
    return NetComparison(
        tuple(_parameters(net)),
        torch_grads,
        jax_grads,
        float(torch_norm),
        float(jax_norm),
        compare_trees(
            torch_grads | {"total norm": torch_norm},
            jax_grads | {"total norm": jax_norm},
            exact | {"total norm": _l2(exact)},
        ),
        tuple(way for formula in FORMULAS for way in _clip_by(formula, net)),
    )


def max_ulps(comparison: TreeComparison) -> int:
    """Return the greatest distance of two elements that were compared, in ulps."""
    return max(tensor.max_ulps or 0 for tensor in comparison.tensors)


def _clip_by(formula: Formula, net: nn.Module) -> Iterator[Way]:
    """Clip by every way that has the formula, and hold it against the first."""
    exact = _jax_grads(net, formula.exact, dtype="float64")
    clipped = {
        name: _torch_grads(net, clip) for name, clip in formula.in_torch.items()
    } | {name: _jax_grads(net, clip) for name, clip in formula.in_jax.items()}
    (first, reference), *others = clipped.items()
    yield Way(first, formula.text, reference, comparison=None)
    for name, grads in others:
        comparison = compare_trees(reference, grads, exact)
        yield Way(name, formula.text, grads, comparison)


def _torch_grads(net: nn.Module, clip: TorchClip | None = None) -> Gradients:
    """Return the gradients of the net's output for an input of ones."""
    net = copy.deepcopy(net)
    net(torch.ones(4)).backward()
    if clip is not None:
        clip(net)
    grads = {name: param.grad for name, param in net.named_parameters()}
    return {name: grad.numpy() for name, grad in grads.items() if grad is not None}


def _jax_grads(
    net: nn.Module, clip: JaxClip | None = None, *, dtype: str = "float32"
) -> Gradients:
    """Return the gradients of the same net in JAX."""
    with jax.enable_x64(dtype == "float64"):
        graphdef, params = nnx.split(_to_jax(net, dtype))

        def output(params: nnx.State[Any, Any]) -> jax.Array:
            return nnx.merge(graphdef, params)(jnp.ones(4, dtype))[0]

        grads = jax.grad(output)(params)
        if clip is not None:
            grads = clip(grads)
        # As weights of the net, they come back under torch's names.
        tensors = convert.to_torch(nnx.merge(graphdef, grads))
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def _to_jax(net: nn.Module, dtype: str) -> models.Sequential:
    target = nnx.eval_shape(lambda: models.my_net(rngs=nnx.Rngs(0), param_dtype=dtype))
    return convert.from_torch(target, copy.deepcopy(net).to(getattr(torch, dtype)))


def _parameters(net: nn.Module) -> Iterator[Parameter]:
    state = nnx.state(_to_jax(net, "float32"))
    flat = nnx.to_flat_state(state)
    jax_params = {".".join(map(str, path)): leaf for path, leaf in flat}
    for name, param in net.named_parameters():
        # Flax calls the weight of an nnx.Linear its kernel.
        jax_name = name if name in jax_params else name.replace("weight", "kernel")
        jax_shape = jax_params[jax_name].shape
        yield Parameter(name, tuple(param.shape), jax_name, jax_shape)


def _l2(grads: Gradients) -> float:
    return math.sqrt(sum(np.sum(grad**2) for grad in grads.values()))
