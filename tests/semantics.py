"""What three libraries make of the same gradients: the rows, computed anew each time.

`scripts/write_readme_tables.py` prints them into the README, and
`test_semantics_table` holds jaxclip's to the truth and the README to all of them.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

import jaxclip

DTYPES = {"bf16": jnp.bfloat16, "f16": jnp.float16, "f32": jnp.float32}
TORCH = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
LIBRARIES = ("jaxclip", "optax", "torch")


@dataclass(frozen=True)
class Row:
    """Gradients, a threshold, and the norm that clipping should leave.

    Attributes:
        name: What is peculiar about them.
        leaves: Lists of numbers, each a leaf.
        max_norm: The threshold.
        dtype: "bf16", "f16" or "f32".
        eps: What is added to the norm where a library lets one choose.
    """

    name: str
    leaves: list[Any]
    max_norm: float = 1.0
    dtype: str = "f32"
    eps: float = 1e-6

    def rounded(self) -> list[np.ndarray[Any, Any]]:
        """Return the leaves as the dtype holds them, in float64."""
        return [
            np.asarray(jnp.asarray(x, DTYPES[self.dtype]), float) for x in self.leaves
        ]

    def norm(self) -> float:
        """Return the norm of the leaves, in float64."""
        return norm_of(self.rounded())

    def truth(self) -> float:
        """Return the norm after clipping, by the formula in float64."""
        norm = self.norm()
        if self.max_norm == math.inf or norm == 0:
            return norm
        return min(1.0, self.max_norm / (norm + self.eps)) * norm

    def clipped(self, library: str) -> list[np.ndarray[Any, Any]]:
        """Return what a library makes of the leaves, in float64."""
        return CLIPS[library](self)


def norm_of(leaves: list[np.ndarray[Any, Any]]) -> float:
    flat = np.concatenate([leaf.ravel() for leaf in leaves])
    largest = np.abs(flat).max(initial=0.0)
    if not 0 < largest < np.inf:
        return float(largest)
    return float(largest * np.linalg.norm(flat / largest))


def by_jaxclip(row: Row) -> list[np.ndarray[Any, Any]]:
    clip = jaxclip.clip_by_global_norm(row.max_norm, eps=row.eps)
    grads = [jnp.asarray(leaf, DTYPES[row.dtype]) for leaf in row.leaves]
    updates, _ = clip.update(grads, clip.init(grads))
    return [np.asarray(leaf, float) for leaf in updates]


def by_optax(row: Row) -> list[np.ndarray[Any, Any]]:
    clip = optax.clip_by_global_norm(row.max_norm)
    grads = [jnp.asarray(leaf, DTYPES[row.dtype]) for leaf in row.leaves]
    updates, _ = clip.update(grads, clip.init(grads))
    return [np.asarray(leaf, float) for leaf in updates]


def by_torch(row: Row) -> list[np.ndarray[Any, Any]]:
    params = []
    for leaf in row.leaves:
        grad = torch.tensor(np.asarray(leaf, np.float64)).to(TORCH[row.dtype])
        param = torch.nn.Parameter(torch.zeros_like(grad))
        param.grad = grad
        params.append(param)
    torch.nn.utils.clip_grad_norm_(params, row.max_norm)
    return [param.grad.double().numpy() for param in params]


CLIPS: dict[str, Callable[[Row], list[np.ndarray[Any, Any]]]] = {
    "jaxclip": by_jaxclip,
    "optax": by_optax,
    "torch": by_torch,
}


def ones(leaves: int) -> list[Any]:
    """Return leaves of norm 1 each."""
    return [[0.5] * 4] * leaves


ROWS = [
    Row("1 leaf of norm 2", [[2.0]], dtype="bf16"),
    Row("300 leaves of norm 1", ones(300), dtype="bf16"),
    Row("1000 leaves of norm 1", ones(1000), dtype="bf16"),
    Row("1000 leaves of norm 1", ones(1000), dtype="f16"),
    Row("an element of 300", [[300.0, 3.0]], dtype="f16"),
    Row("elements of 1e-23, max_norm 1e-24", [[1e-23, 1e-23]], 1e-24, eps=0.0),
    Row("elements of 1e-30, max_norm 1e-31", [[1e-30, 1e-30]], 1e-31, eps=0.0),
    Row("an element of 1.9e19", [[1.9e19, 1.0]]),
    Row("elements of 4e19", [[4e19, 3e19]]),
    Row("an element of 3e38", [[3e38, 1e38]]),
    Row("two leaves, of norm 3e38 each", [[3e38], [3e38]]),
    Row("norm 1e30, max_norm 1e-9", [[1e30]], 1e-9),
    Row("norm 5, max_norm 5, eps 0", [[3.0, 4.0]], 5.0, eps=0.0),
    Row("max_norm 0", [[3.0, 4.0]], 0.0),
    Row("norm 0", [[0.0, 0.0]]),
    Row("norm 0, max_norm 0", [[0.0, 0.0]], 0.0, eps=0.0),
    Row("norm 4e38, max_norm inf", [[3e38], [3e38]], math.inf),
]


def norm_cell(row: Row, library: str) -> str:
    """Return the norm that a library leaves, and say if the direction changed."""
    leaves = row.clipped(library)
    flat = np.concatenate([leaf.ravel() for leaf in leaves])
    if np.isnan(flat).any():
        return "NaN"
    norm = norm_of(leaves)
    cell = f"{norm:.4g}"
    before = np.concatenate([leaf.ravel() for leaf in row.rounded()])
    if norm > 0:
        unit, unit_before = flat / norm, before / row.norm()
        if np.abs(unit - unit_before).max() > 0.01:
            cell += ", turned"
    return cell


# ---- what is no norm -----------------------------------------------------------------


def attempt(function: Callable[[], Any]) -> str:
    """Return what a function returns, or the name of what it raises."""
    try:
        return str(function())
    except Exception as error:
        return type(error).__name__


def optax_update(max_norm: Any, grads: Any) -> Any:
    return optax.clip_by_global_norm(max_norm).update(grads, optax.EmptyState())[0]


def jaxclip_update(max_norm: Any, grads: Any, **options: Any) -> Any:
    clip = jaxclip.clip_by_global_norm(max_norm, **options)
    return clip.update(grads, clip.init(grads))[0]


def torch_clip(max_norm: float, *leaves: Any, **options: Any) -> list[torch.Tensor]:
    params = [torch.nn.Parameter(torch.zeros_like(torch.tensor(x))) for x in leaves]
    for param, leaf in zip(params, leaves, strict=True):
        param.grad = torch.tensor(leaf)
    torch.nn.utils.clip_grad_norm_(params, max_norm, **options)
    return [param.grad for param in params]


def numbers(values: Any) -> str:
    return " ".join(f"{float(value):.4g}" for value in np.ravel(np.asarray(values)))


def derivative(update: Callable[[Any, Any], Any]) -> str:
    zeros = jnp.zeros(2)
    return numbers(jax.grad(lambda g: update(1.0, [g])[0].sum())(zeros))


def torch_derivative() -> str:
    grad = torch.zeros(2, requires_grad=True)
    norm = torch.linalg.vector_norm(grad)
    torch.clamp(1.0 / (norm + 1e-6), max=1.0).mul(grad).sum().backward()
    return numbers(grad.grad)


def under_debug_nans(update: Callable[[Any, Any], Any]) -> str:
    with jax.debug_nans(True):
        return numbers(update(1.0, [jnp.zeros(2)])[0])


def scheduled(factory: Callable[..., Any]) -> str:
    """Clip bf16 gradients by a schedule, through ``inject_hyperparams``."""
    clip = optax.inject_hyperparams(factory)(optax.constant_schedule(1.0))
    grads = [jnp.array([3.0, 4.0], jnp.bfloat16)]
    updates, _ = jax.jit(clip.update)(grads, clip.init(grads))
    return numbers(updates[0].astype(jnp.float32))


OTHERS: dict[str, tuple[Callable[[], Any], ...]] = {
    "max_norm −1, of [3 4]": (
        lambda: numbers(jaxclip_update(-1.0, [jnp.array([3.0, 4.0])])[0]),
        lambda: numbers(optax_update(-1.0, [jnp.array([3.0, 4.0])])[0]),
        lambda: numbers(torch_clip(-1.0, [3.0, 4.0])[0]),
    ),
    "max_norm NaN, of [3 4]": (
        lambda: numbers(jaxclip_update(math.nan, [jnp.array([3.0, 4.0])])[0]),
        lambda: numbers(optax_update(math.nan, [jnp.array([3.0, 4.0])])[0]),
        lambda: numbers(torch_clip(math.nan, [3.0, 4.0])[0]),
    ),
    "derivative at [0 0], max_norm 1": (
        lambda: derivative(jaxclip_update),
        lambda: derivative(optax_update),
        torch_derivative,
    ),
    "[0 0] under `jax_debug_nans`": (
        lambda: under_debug_nans(jaxclip_update),
        lambda: under_debug_nans(optax_update),
        lambda: "-",
    ),
    "scheduled max_norm, bf16 [3 4]": (
        lambda: scheduled(jaxclip.clip_by_global_norm),
        lambda: scheduled(optax.clip_by_global_norm),
        lambda: "-",
    ),
    "[NaN 4]": (
        lambda: numbers(jaxclip_update(1.0, [jnp.array([math.nan, 4.0])])[0]),
        lambda: numbers(optax_update(1.0, [jnp.array([math.nan, 4.0])])[0]),
        lambda: numbers(torch_clip(1.0, [math.nan, 4.0])[0]),
    ),
    "[NaN 4], to be zeroed": (
        lambda: numbers(
            jaxclip_update(1.0, [jnp.array([math.nan, 4.0])], nonfinite="zero")[0]
        ),
        lambda: "-",
        lambda: "-",
    ),
    "[NaN 4], to be raised": (
        lambda: jaxclip_update(1.0, [jnp.array([math.nan, 4.0])], nonfinite="raise"),
        lambda: "-",
        lambda: torch_clip(1.0, [math.nan, 4.0], error_if_nonfinite=True),
    ),
    "[3e38 3e38], NaN to be raised": (
        lambda: numbers(
            jaxclip_update(1.0, [jnp.array([3e38, 3e38])], nonfinite="raise")[0]
        ),
        lambda: "-",
        lambda: torch_clip(1.0, [3e38, 3e38], error_if_nonfinite=True),
    ),
    "integers [3 4]": (
        lambda: jaxclip_update(1.0, [jnp.array([3, 4])]),
        lambda: numbers(optax_update(1.0, [jnp.array([3, 4])])[0]),
        lambda: torch_clip(1.0, [3, 4]),
    ),
    "complex [3+4j], eps 0": (
        lambda: numbers(np.abs(jaxclip_update(1.0, [jnp.array([3 + 4j])], eps=0.0)[0])),
        lambda: numbers(np.abs(optax_update(1.0, [jnp.array([3 + 4j])])[0])),
        lambda: numbers(torch_clip(1.0, [3 + 4j])[0].abs()),
    ),
}


@functools.cache
def table() -> list[list[str]]:
    """Return the cells: a name, the truth, and what each library gives."""
    rows = [
        [
            f"{row.dtype}: {row.name}",
            f"{row.truth():.4g}",
            *[norm_cell(row, library) for library in LIBRARIES],
        ]
        for row in ROWS
    ]
    return rows + [
        [name, "", *[attempt(function) for function in functions]]
        for name, functions in OTHERS.items()
    ]
