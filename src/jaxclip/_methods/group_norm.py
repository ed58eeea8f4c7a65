"""Clip groups of leaves, each by the norm of the group."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxclip._core.arguments import Scalar, check_eps
from jaxclip._core.leaves import accumulation_dtype
from jaxclip._core.mesh import AxisName, check_axis_name
from jaxclip._core.nonfinite import Nonfinite
from jaxclip._core.paths import leaf_labels, path_name
from jaxclip._core.scaling import Clipped, clip_factors, scale_each
from jaxclip._core.transformation import Threshold, checked_threshold, transformation
from jaxclip._monitoring import ClipState, init_clip_state, record_clip
from jaxclip._norms import check_norm_type, group_norms, tree_norm


class GroupClipState(NamedTuple):
    """What `clip_by_group_norm` remembers; all 0 before the first step.

    Attributes:
        clip: The norms of all the groups together, the smallest coefficient of any,
            and whether any was clipped.
        norms: The last step's norm of each group before clipping, by label.
        clip_coefs: What each group was multiplied by on the last step, by label.
    """

    clip: ClipState
    norms: dict[str, jax.Array]
    clip_coefs: dict[str, jax.Array]


def clip_by_group_norm(
    max_norms: Mapping[str, Threshold],
    labels: Any | Callable[[Any], Any],
    *,
    norm_type: Scalar = 2.0,
    eps: Scalar = 1e-6,
    nonfinite: Nonfinite = "propagate",
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Scale each group of leaves so that its joint norm is at most its ``max_norm``.

    .. math:: g_k \leftarrow \min\Big(1, \frac{\text{max\_norm}_G}
              {\|g_G\|_p + \text{eps}}\Big)\, g_k \qquad\text{for } k \in G

    For one norm over a part of the leaves, and none over the others, use
    ``clip_by_global_norm(max_norm, where=...)``.

    Args:
        max_norms: For each label the largest norm allowed to its group, ≥ 0: a
            number, a scalar array, or a schedule, ``count -> max_norm``. inf leaves
            a group as it is.
        labels: The label of each leaf: a tree like the updates or a prefix of it, or
            a function that returns one given the updates, as in ``optax.partition``.
            `by_path` makes such a function of one of paths. Labels without leaves
            are allowed.
        norm_type: p, a positive number or inf.
        eps: Added to each norm, ≥ 0.
        nonfinite: See `clip_by_global_norm`. All groups are one step.
        axis_name: See `global_norm`.

    Returns:
        A transformation whose state is a `GroupClipState`. In
        ``optax.inject_hyperparams`` name ``labels`` among the ``static_args`` if it
        is a function.

    Raises:
        TypeError: A threshold is no scalar; in ``update``: a leaf is no inexact
            array.
        ValueError: An argument is out of range; in ``update``: a label has no
            threshold, or ``labels`` is no prefix of the updates.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxclip._core.paths import by_path
        >>> clip = clip_by_group_norm(
        ...     {"body": 1.0, "head": 0.5},
        ...     by_path(lambda path: "head" if path.startswith("head") else "body"),
        ...     eps=0.0,
        ... )
        >>> grads = {
        ...     "embed": jnp.array([3.0]),
        ...     "head": jnp.array([2.0]),
        ...     "mlp": jnp.array([4.0]),
        ... }
        >>> updates, state = clip.update(grads, clip.init(grads))
        >>> print(*updates.values())
        [0.6] [0.5] [0.8]
        >>> print(state.norms["body"], state.norms["head"])
        5.0 2.0

    Differs from ``optax.partition`` of one clip to each label: one state, with the
    norm of everything in it, and one pass; and as `clip_by_global_norm` does from its
    namesake.
    """
    caller = "clip_by_group_norm"
    thresholds = {
        label: checked_threshold(caller, f"max_norms[{label!r}]", limit)
        for label, limit in max_norms.items()
    }

    def init(params: optax.Params) -> GroupClipState:
        dtype = accumulation_dtype(jax.tree.leaves(params))
        return GroupClipState(
            init_clip_state(params),
            {label: jnp.zeros((), dtype) for label in thresholds},
            {label: jnp.zeros((), dtype) for label in thresholds},
        )

    return transformation(
        caller,
        init,
        _clip_groups,
        thresholds,
        extras=lambda updates, _: (
            (),
            {"groups": _label_leaves(updates, labels, list(thresholds))},
        ),
        nonfinite=nonfinite,
        norm_type=check_norm_type(norm_type, caller),
        eps=check_eps(caller, eps),
        axis_names=check_axis_name(axis_name),
    )


def _label_leaves(
    updates: optax.Updates, labels: Any, known: Sequence[str]
) -> tuple[str, ...]:
    """Return the label of each leaf that `split_leaves` takes out of the updates."""
    chosen = []
    leaves = jax.tree_util.tree_leaves_with_path(updates)
    found = leaf_labels(labels, updates, "clip_by_group_norm", "labels")
    for (path, leaf), label in zip(leaves, found, strict=True):
        if label not in known:
            raise ValueError(
                f"clip_by_group_norm(labels=...): the leaf {path_name(path)!r} has "
                f"the label {label!r}, and max_norms holds {list(known)}. Add it "
                "there; inf leaves its leaves as they are."
            )
        if getattr(leaf, "dtype", None) != jax.dtypes.float0:
            chosen.append(label)
    return tuple(chosen)


def _clip_groups(
    leaves: Sequence[jax.Array],
    limits: Mapping[str, Scalar],
    state: GroupClipState,
    *,
    groups: tuple[str, ...],
    norm_type: float | jax.Array,
    eps: float | jax.Array,
    axis_names: tuple[str, ...],
) -> tuple[Clipped, GroupClipState]:
    index = {label: position for position, label in enumerate(limits)}
    members: list[list[jax.Array]] = [[] for _ in limits]
    for leaf, label in zip(leaves, groups, strict=True):
        members[index[label]].append(leaf)

    dtype = accumulation_dtype(leaves)
    max_norms = _stack([jnp.asarray(limit, dtype) for limit in limits.values()], dtype)
    norms = group_norms(
        members,
        norm_type=norm_type,
        axis_names=axis_names,
        # A norm this far below its threshold changes no coefficient.
        negligible=max_norms * float(jnp.finfo(dtype).eps),
    )
    factors = clip_factors(norms, max_norms, eps)

    def joint(values: jax.Array) -> jax.Array:
        # The groups' norms are those of all shards already.
        return tree_norm([values], norm_type=norm_type).value

    clipped = Clipped(
        leaves=scale_each(leaves, factors, [index[label] for label in groups]),
        total_norm=joint(norms.value),
        clipped_norm=joint(factors.norm_after(norms)),
        clip_coef=jnp.min(factors.clip_coef, initial=1.0),
        finite=jnp.all(norms.finite),
    )
    return clipped, GroupClipState(
        record_clip(state.clip, clipped),
        _by_label(state.norms, norms.value, index),
        _by_label(state.clip_coefs, factors.clip_coef, index),
    )


def _stack(scalars: Sequence[jax.Array], dtype: Any) -> jax.Array:
    return jnp.stack(scalars) if scalars else jnp.zeros((0,), dtype)


def _by_label(
    old: dict[str, jax.Array], values: jax.Array, index: Mapping[str, int]
) -> dict[str, jax.Array]:
    """Return the values by label, each in the dtype that the state has from `init`."""
    return {label: values[index[label]].astype(old[label].dtype) for label in old}
