"""A small feed-forward net with a hand-made linear layer inside, in Flax NNX."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx

from jaxclip.models import _init
from jaxclip.models._checks import check_layer_names


class MyLinear(nnx.Module):
    r"""Two affine maps in a row, the first of them written out by hand.

    .. math:: y = (x W + b) A + c

    The counterpart of ``torchref.my_linear.MyLinear``. ``W`` and ``b`` are raw
    parameters and lie as torch's do; ``A`` is the kernel of an ``nnx.Linear``, which
    is the *transpose* of the weight of torch's ``nn.Linear``.

    Args:
        in_features: The length of an input vector.
        out_features: The length of an output vector.
        rngs: Where the parameters are drawn from: ``W`` and ``b`` from the standard
            normal distribution, ``A`` and ``c`` as ``torch.nn.Linear`` draws them.
        param_dtype: The dtype of the parameters.

    Attributes:
        weight: ``W``, of shape ``(in_features, out_features)``.
        bias: ``b``, of shape ``(out_features,)``.
        fc: The ``nnx.Linear(out_features, out_features)`` that holds ``A`` and ``c``.

    Example:
        >>> layer = MyLinear(4, 3, rngs=nnx.Rngs(0))
        >>> layer(jnp.ones((2, 4))).shape
        (2, 3)
        >>> layer.weight.shape, layer.fc.kernel.shape
        ((4, 3), (3, 3))
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        rngs: nnx.Rngs,
        param_dtype: Any = jnp.float32,
    ) -> None:
        """Draw the parameters; see the class for their shapes."""
        normal = _init.normal()
        self.weight = nnx.Param(
            normal(rngs.params(), (in_features, out_features), param_dtype)
        )
        self.bias = nnx.Param(normal(rngs.params(), (out_features,), param_dtype))
        self.fc = nnx.Linear(
            out_features,
            out_features,
            param_dtype=param_dtype,
            rngs=rngs,
            **_init.linear(out_features),
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``x``, of shape ``(..., in_features)``, to ``(..., out_features)``."""
        return self.fc(x @ self.weight[...] + self.bias[...])


class Sequential(nnx.Module):
    """Layers applied one after another, each under the name that it is given.

    The counterpart of a ``torch.nn.Sequential`` whose modules were added by name: a
    parameter's path starts with that name, where ``nnx.Sequential`` would put
    ``layers`` and a number.

    Args:
        layers: The layers by name, in the order in which they are applied. A name is
            a non-empty string without a dot.

    Attributes:
        names: The names, in that order; each layer is the attribute of its name.

    Raises:
        ValueError: If a name is empty, holds a dot, or is taken by an attribute.

    Example:
        >>> rngs = nnx.Rngs(0)
        >>> net = Sequential({"in": nnx.Linear(2, 8, rngs=rngs), "act": jax.nn.relu})
        >>> net(jnp.ones(2)).shape
        (8,)
        >>> [".".join(path) for path, _ in nnx.to_flat_state(nnx.state(net))]
        ['in.bias', 'in.kernel']
    """

    def __init__(self, layers: Mapping[str, Callable[[jax.Array], jax.Array]]) -> None:
        """Take the layers as they are."""
        check_layer_names(layers)
        self.names = tuple(layers)
        for name, layer in layers.items():
            if hasattr(self, name):
                raise ValueError(
                    f"layers has the name {name!r}, which is already an attribute of "
                    "Sequential; choose another."
                )
            setattr(self, name, layer)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply each layer to the output of the one before."""
        for name in self.names:
            layer = cast(Callable[[jax.Array], jax.Array], getattr(self, name))
            x = layer(x)
        return x


def my_net(*, rngs: nnx.Rngs, param_dtype: Any = jnp.float32) -> Sequential:
    """Build ``MyLinear(4, 3)``, named "1", then ``nnx.Linear(3, 1)``, named "3".

    The counterpart of ``torchref.my_linear.my_net``.

    Args:
        rngs: Where the parameters are drawn from, as torch draws them.
        param_dtype: The dtype of the parameters.

    Returns:
        The net, which maps ``(..., 4)`` to ``(..., 1)``.

    Example:
        >>> net = my_net(rngs=nnx.Rngs(0))
        >>> net(jnp.ones(4)).shape
        (1,)
        >>> [".".join(path) for path, _ in nnx.to_flat_state(nnx.state(net))]
        ['1.bias', '1.fc.bias', '1.fc.kernel', '1.weight', '3.bias', '3.kernel']
    """
    return Sequential(
        {
            "1": MyLinear(4, 3, rngs=rngs, param_dtype=param_dtype),
            "3": nnx.Linear(
                3, 1, param_dtype=param_dtype, rngs=rngs, **_init.linear(3)
            ),
        }
    )
