"""Say which leaves of a tree are meant: by their paths, or by a tree of labels."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec

from jaxclip._core.leaves import Rebuild, split_leaves

Where = Any | Callable[[Any], Any]


def by_path(function: Callable[[str], Any]) -> Callable[[Any], Any]:
    """Turn a function of a leaf's path into a function of the tree.

    Optax takes labels and masks as trees, or as functions of the tree of parameters:
    this makes such a function, for jaxclip's arguments and for Optax's.

    Args:
        function: Is called with the path of each leaf, its parts joined by ``/``,
            such as ``"decoder/layers/0/kernel"``. The leaves of NNX modules and
            states end in ``/value``.

    Returns:
        A function that takes a tree and returns one of the same structure, of what
        ``function`` returned.

    Raises:
        TypeError: ``function`` cannot be called.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"body": {"w": jnp.ones(2)}, "head": [jnp.ones(2), jnp.ones(1)]}
        >>> by_path(lambda path: path.startswith("head"))(params)
        {'body': {'w': False}, 'head': [True, True]}
        >>> by_path(lambda path: path)(params)
        {'body': {'w': 'body/w'}, 'head': ['head/0', 'head/1']}
    """
    if not callable(function):
        raise TypeError(
            f"by_path({function!r}): expected a function of a path, such as "
            "lambda path: path.startswith('head')."
        )
    return lambda tree: jax.tree_util.tree_map_with_path(
        lambda path, _: function(path_name(path)), tree
    )


def path_name(path: Any) -> str:
    """Return the path of a leaf as users write it, such as ``"layers/0/kernel"``."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def leaf_labels(labels: Where, tree: Any, caller: str, name: str) -> list[Any]:
    """Return what a tree of labels says of each leaf.

    Args:
        labels: A tree of the same structure, or a prefix of it, or a function that
            returns one given the tree.
        tree: The tree that is labelled.
        caller: The public function that was called, for the error.
        name: The name of its argument.

    Returns:
        A label for each of ``jax.tree.leaves(tree)``, in its order.

    Raises:
        ValueError: ``labels`` is no prefix of the tree.
    """
    prefix = labels(tree) if callable(labels) else labels
    found: list[Any] = []
    try:
        jax.tree.map(
            lambda label, part: found.extend([label] * len(jax.tree.leaves(part))),
            prefix,
            tree,
            is_leaf=lambda node: node is None or isinstance(node, PartitionSpec),
        )
    except ValueError as error:
        raise ValueError(
            f"{caller}({name}=...): expected a tree of the structure of the updates, "
            "a prefix of it, or a function that returns one given them; "
            f"jaxclip.by_path makes one of a function of paths. {error}"
        ) from None
    return found


def split_where(
    tree: Any, where: Where | None, caller: str
) -> tuple[list[jax.Array], Rebuild]:
    """Take those inexact leaves out of a tree that ``where`` says; see `split_leaves`.

    Args:
        tree: A tree of arrays. Leaves that are left in it may be of any type.
        where: A tree of booleans, of the same structure or a prefix of it, or a
            function that returns one given the tree. None takes every leaf.
        caller: The public function that was called, for the error.

    Returns:
        The leaves, and a function that puts others in their places.

    Raises:
        TypeError: A leaf that ``where`` says is no inexact array.
        ValueError: ``where`` is no prefix of the tree, or not of booleans.
    """
    part, restore = restrict(tree, where, caller)
    leaves, rebuild = split_leaves(part, caller)
    return leaves, lambda clipped: restore(rebuild(clipped))


def restrict(
    tree: Any, where: Where | None, caller: str
) -> tuple[Any, Callable[[Any], Any]]:
    """Put None in the place of all leaves but those that ``where`` says.

    Args:
        tree: A tree of arrays.
        where: See `split_where`.
        caller: The public function that was called, for the error.

    Returns:
        The restricted tree, and a function that puts the other leaves back into a
        tree like it.

    Raises:
        ValueError: ``where`` is no prefix of the tree, or not of booleans.
    """
    if where is None:
        return tree, lambda part: part
    leaves, structure = jax.tree.flatten(tree)
    treedef: Any = structure  # whose methods have no types
    chosen = leaf_labels(where, tree, caller, "where")
    for label in chosen:
        if not isinstance(label, bool):
            raise ValueError(
                f"{caller}(where=...): expected True or False for each leaf, got "
                f"{label!r}."
            )

    def restore(part: Any) -> Any:
        others = treedef.flatten_up_to(part)
        return treedef.unflatten(
            new if wanted else old
            for new, old, wanted in zip(others, leaves, chosen, strict=True)
        )

    kept = [
        leaf if wanted else None for leaf, wanted in zip(leaves, chosen, strict=True)
    ]
    return treedef.unflatten(kept), restore


def inexact_leaves_with_path(tree: Any) -> list[tuple[str, Any]]:
    """Return those leaves that `split_leaves` takes out of a tree, with their paths."""
    return [
        (path_name(path), leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if getattr(leaf, "dtype", None) != jax.dtypes.float0
    ]


def matching_params(params: Any, updates: Any, caller: str) -> list[Any]:
    """Return the parameter of each leaf that `split_leaves` takes out of the updates.

    Args:
        params: A tree like the updates; what stands where they hold None is ignored.
        updates: A tree of arrays.
        caller: The public function that was called, for the error.

    Raises:
        ValueError: There are no parameters, or they are of another structure or
            shape; the error names the leaf.
    """
    if not jax.tree.leaves(updates):
        return []
    if params is None:
        raise ValueError(
            f"{caller}: expected the parameters, got None. Call "
            "update(updates, state, params)."
        )
    structure = jax.tree.structure(updates, is_leaf=lambda node: node is None)
    treedef: Any = structure  # whose methods have no types
    try:
        parts = treedef.flatten_up_to(params)
    except ValueError as error:
        raise ValueError(
            f"{caller}: expected parameters of the structure of the updates. {error}"
        ) from None
    leaves = jax.tree_util.tree_leaves_with_path(
        updates, is_leaf=lambda node: node is None
    )
    kept = []
    for (path, leaf), part in zip(leaves, parts, strict=True):
        if leaf is None or getattr(leaf, "dtype", None) == jax.dtypes.float0:
            continue
        given, expected = (
            getattr(x, "shape", () if isinstance(x, float | complex) else None)
            for x in (part, leaf)
        )
        if given != expected:
            raise ValueError(
                f"{caller}: the parameter {path_name(path)!r} has the shape {given}, "
                f"and its update {expected}; expected the same shape."
            )
        kept.append(part)
    return kept
