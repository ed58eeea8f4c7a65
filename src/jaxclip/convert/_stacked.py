"""Layers that Flax holds as one, each variable with a leading axis of layers.

``nnx.vmap`` makes such modules for ``nnx.scan``, and ``nn.scan`` in Linen; torch has a
``ModuleList``, and a tensor for each layer.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain

import jax
import numpy as np

from jaxclip.convert._rules.links import Arrays, Link
from jaxclip.convert._targets.tree import Leaf, Node


def layer_count(node: Node) -> int | None:
    """Return the length of the first axis of all variables, if they agree."""
    lengths = {leaf.value.shape[:1] for leaf in node.beneath().values()}
    return lengths.pop()[0] if len(lengths) == 1 and () not in lengths else None


def one_layer(node: Node) -> Node:
    """Return a module as it would be if it held the first of its layers alone."""
    return replace(
        node,
        leaves={name: _sliced(leaf) for name, leaf in node.leaves.items()},
        children={name: one_layer(child) for name, child in node.children.items()},
        unseen={name: _sliced(leaf) for name, leaf in node.unseen.items()},
    )


def stack(link: Link, layers: int) -> Link:
    """Return the link of all layers, from that of one.

    Its tensors are those of the first layer, then those of the second, and so on.
    """
    per_layer = len(link.torch)

    def to_flax(*tensors: np.ndarray) -> Arrays:
        values = (
            link.to_flax(*tensors[start : start + per_layer])
            for start in range(0, len(tensors), per_layer)
        )
        return tuple(map(np.stack, zip(*values, strict=True)))

    def to_torch(*variables: np.ndarray) -> Arrays:
        def of_each() -> Iterator[Arrays]:
            for layer in range(layers):
                yield link.to_torch(*(variable[layer] for variable in variables))

        return tuple(chain.from_iterable(of_each()))

    names = tuple(f"{layer}.{name}" for layer in range(layers) for name in link.torch)
    return Link(names, link.flax, to_flax, to_torch)


def _sliced(leaf: Leaf) -> Leaf:
    shape, dtype = leaf.value.shape[1:], leaf.value.dtype
    return replace(leaf, value=jax.ShapeDtypeStruct(shape, dtype))
