"""Initialisers that draw from the distributions that torch draws from."""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import jax

Initializer = Callable[..., jax.Array]
"""A function ``(key, shape, dtype) -> array``, as Flax takes it."""


zeros: Initializer = jax.nn.initializers.zeros


class LinearInit(TypedDict):
    """The keyword arguments by which a Flax linear layer takes its initialisers."""

    kernel_init: Initializer
    bias_init: Initializer


def uniform(fan: int) -> Initializer:
    r"""Draw from ``U(-1/√fan, 1/√fan)``, whatever the shape of the array.

    torch draws the weight *and* the bias of a linear layer so, with ``fan`` its
    input size, and all four arrays of a recurrent layer, with ``fan`` its hidden
    size.

    Args:
        fan: How many numbers a bound is for.

    Example:
        >>> drawn = uniform(4)(jax.random.key(0), (1000,), "float32")
        >>> bool(0.49 < abs(drawn).max() <= 0.5)
        True
    """
    bound = fan**-0.5

    def init(key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def normal(stddev: float = 1.0) -> Initializer:
    """Draw from the normal distribution of mean 0 and the given deviation.

    torch draws the rows of an embedding so, with a deviation of 1, and zeros for
    ``padding_idx``, which ``jaxclip.models.Embed`` sees to.

    Args:
        stddev: The standard deviation.

    Example:
        >>> normal()(jax.random.key(0), (2, 3), "float32").shape
        (2, 3)
    """
    return jax.nn.initializers.normal(stddev)


def linear(in_features: int) -> LinearInit:
    r"""Return what makes a Flax linear layer start as ``torch.nn.Linear`` does.

    Kernel and bias are drawn from :math:`U(-1/\sqrt{n}, 1/\sqrt{n})` with ``n`` inputs.

    Differs from Flax's defaults: a normal distribution of variance ``1 / n`` for the
    kernel, three times torch's, and zeros for the bias.

    Args:
        in_features: The length of an input vector; the product of the lengths where
            a layer contracts several axes.

    Returns:
        The keyword arguments ``kernel_init`` and ``bias_init``.

    Example:
        >>> from flax import nnx
        >>> layer = nnx.Linear(100, 5, rngs=nnx.Rngs(0), **linear(100))
        >>> bool(abs(layer.bias[...]).max() <= 0.1)
        True
    """
    return {"kernel_init": uniform(in_features), "bias_init": uniform(in_features)}


def conv(
    in_features: int,
    kernel_size: int | Sequence[int],
    *,
    feature_group_count: int = 1,
) -> LinearInit:
    """Return what makes a Flax convolution start as torch's do.

    As ``linear``, with the inputs that lead to one output: the input channels of a
    group, times the elements of the window.

    Args:
        in_features: The number of input channels.
        kernel_size: The length of the window along each spatial axis.
        feature_group_count: The number of groups.

    Returns:
        The keyword arguments ``kernel_init`` and ``bias_init``.

    Example:
        >>> from flax import nnx
        >>> layer = nnx.Conv(4, 5, (5, 5), rngs=nnx.Rngs(0), **conv(4, (5, 5)))
        >>> bool(abs(layer.kernel[...]).max() <= 0.1)
        True
    """
    sizes = (kernel_size,) if isinstance(kernel_size, int) else kernel_size
    return linear(in_features // feature_group_count * math.prod(sizes))


def conv_transpose(out_features: int, kernel_size: int | Sequence[int]) -> LinearInit:
    """Return what makes a Flax transposed convolution start as torch's do.

    As ``conv``, but torch counts the *output* channels here. Flax's own layer has no
    groups; ``jaxclip.models.ConvTranspose`` has, and starts as torch's by itself.

    Args:
        out_features: The number of output channels.
        kernel_size: The length of the window along each spatial axis.

    Returns:
        The keyword arguments ``kernel_init`` and ``bias_init``.

    Example:
        >>> from flax import nnx
        >>> layer = nnx.ConvTranspose(
        ...     9, 4, (5, 5), rngs=nnx.Rngs(0), **conv_transpose(4, (5, 5))
        ... )
        >>> bool(abs(layer.kernel[...]).max() <= 0.1)
        True
    """
    return conv(out_features, kernel_size)


def xavier_uniform() -> Initializer:
    """Draw as torch's ``xavier_uniform_`` does: ``U(-b, b)``, ``b = √(6/(m + n))``."""
    return jax.nn.initializers.xavier_uniform()
