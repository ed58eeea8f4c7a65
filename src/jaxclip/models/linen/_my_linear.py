"""A small feed-forward net with a hand-made linear layer inside, in Flax Linen."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxclip.models import _init
from jaxclip.models._checks import check_layer_names


class MyLinear(nn.Module):
    r"""Two affine maps in a row, the first of them written out by hand.

    .. math:: y = (x W + b) A + c

    The counterpart of ``torchref.my_linear.MyLinear``. ``W`` and ``b`` are raw
    parameters and lie as torch's do; ``A`` is the kernel of an ``nn.Dense``, which is
    the *transpose* of the weight of torch's ``nn.Linear``.

    Attributes:
        in_features: The length of an input vector.
        out_features: The length of an output vector.
        param_dtype: The dtype of the parameters.

    Example:
        >>> layer = MyLinear(4, 3)
        >>> params = layer.init(jax.random.key(0), jnp.ones(4))["params"]
        >>> params["weight"].shape, params["bias"].shape, params["fc"]["kernel"].shape
        ((4, 3), (3,), (3, 3))
    """

    in_features: int
    out_features: int
    param_dtype: Any = jnp.float32

    def setup(self) -> None:
        """Make ``W``, ``b`` and the dense layer; see the class for their shapes."""
        normal, dtype = _init.normal(), self.param_dtype
        shape = (self.in_features, self.out_features)
        self.weight = self.param("weight", normal, shape, dtype)
        self.bias = self.param("bias", normal, (self.out_features,), dtype)
        self.fc = nn.Dense(
            self.out_features, param_dtype=dtype, **_init.linear(self.out_features)
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``x``, of shape ``(..., in_features)``, to ``(..., out_features)``."""
        return self.fc(x @ self.weight + self.bias)


class Sequential(nn.Module):
    """Layers applied one after another, each under the name that it is given.

    The counterpart of a ``torch.nn.Sequential`` whose modules were added by name: a
    parameter's path starts with that name, where ``flax.linen.Sequential`` would put
    ``layers_`` and a number.

    Attributes:
        layers: The layers by name, in the order in which they are applied. A name is
            a non-empty string without a dot.

    Raises:
        ValueError: If a name is empty or holds a dot.

    Example:
        >>> net = Sequential({"in": nn.Dense(8), "act": nn.relu, "out": nn.Dense(1)})
        >>> params = net.init(jax.random.key(0), jnp.ones(2))["params"]
        >>> sorted(params)
        ['in', 'out']
    """

    layers: Mapping[str, Callable[[jax.Array], jax.Array]]

    # Flax would name the layers after the field that they are passed in.
    preserve_adopted_names: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Give each layer its name."""
        check_layer_names(self.layers)
        self.layers = {
            name: layer.clone(name=name) if isinstance(layer, nn.Module) else layer
            for name, layer in self.layers.items()
        }
        super().__post_init__()

    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply each layer to the output of the one before."""
        for layer in self.layers.values():
            x = layer(x)
        return x


def my_net(*, param_dtype: Any = jnp.float32) -> Sequential:
    """Build ``MyLinear(4, 3)``, named "1", then ``nn.Dense(1)``, named "3".

    The counterpart of ``torchref.my_linear.my_net``.

    Args:
        param_dtype: The dtype of the parameters.

    Returns:
        The net, which maps ``(..., 4)`` to ``(..., 1)``.

    Example:
        >>> net = my_net()
        >>> variables = net.init(jax.random.key(0), jnp.ones(4))
        >>> net.apply(variables, jnp.ones(4)).shape
        (1,)
        >>> sorted(variables["params"]), sorted(variables["params"]["1"])
        (['1', '3'], ['bias', 'fc', 'weight'])
    """
    last = nn.Dense(1, param_dtype=param_dtype, **_init.linear(3))
    return Sequential({"1": MyLinear(4, 3, param_dtype=param_dtype), "3": last})
