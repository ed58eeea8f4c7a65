"""The parts of a training step in the order in which a torch loop has them."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxclip._core.paths import Where, leaf_labels
from jaxclip.optim import _arguments as check
from jaxclip.optim._accumulate import Reduction, accumulate
from jaxclip.optim._arguments import Hyperparameter
from jaxclip.optim._numbers import is_zero

_CALLER = "in_torch_order"

Wrapper = Callable[[optax.GradientTransformation], optax.GradientTransformation]


def in_torch_order(
    optimizer: optax.GradientTransformation,
    *,
    clip: optax.GradientTransformation | None = None,
    clip_each: optax.GradientTransformation | None = None,
    accumulate_steps: int = 1,
    reduction: Reduction = "sum",
    scaler: Wrapper | None = None,
    decay_before_clip: Hyperparameter = 0.0,
    frozen: Where | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Put the parts of a training step together in the order of a torch loop.

    ======================================  ======================================
    torch                                   here
    ======================================  ======================================
    ``p.requires_grad_(False)``             ``frozen``: has no part in what follows
    clip of one micro-batch's gradients     ``clip_each``
    ``loss.backward()``, several times      ``accumulate_steps``, ``reduction``
    ``scaler.unscale_(optimizer)``          ``scaler``
    ``p.grad.add_(p, alpha=decay)``         ``decay_before_clip``
    ``clip_grad_norm_(...)``                ``clip``
    ``optimizer.step()``                    ``optimizer``, its own decay included
    ======================================  ======================================

    Args:
        optimizer: The optimizer; ``optax.partition`` of several for parameter groups.
        clip: Clips the gradients that the optimizer is to see, all groups together.
        clip_each: Clips the gradients of each micro-batch, before they are added up.
        accumulate_steps: Micro-batches to a step; see `accumulate`.
        reduction: Whether to add them up, ``"sum"``, or take their ``"mean"``.
        scaler: Wraps what follows the unscaling: `grad_scaler`, or a
            ``functools.partial`` of it.
        decay_before_clip: A weight decay, ≥ 0, that is clipped with the gradients. It
            is what a loop does that adds it by hand, or to the loss; those of torch's
            optimizers come after the clip, and are the optimizer's own arguments.
        frozen: The parameters that are not trained: a tree of booleans, a prefix of
            one, or a function that returns one given the parameters; `jaxclip.by_path`
            makes such a function of one of paths. Their gradients count in no norm,
            and they do not decay.

    Returns:
        A transformation. It passes extra arguments on.

    Raises:
        TypeError: A part is no transformation.
        ValueError: An argument is out of range, or ``clip_each`` meets a ``scaler``:
            what it would clip is still scaled.

    Example:
        >>> import jax.numpy as jnp, jaxclip
        >>> from jaxclip import optim
        >>> optimizer = in_torch_order(
        ...     optim.sgd(1.0, weight_decay=0.1),
        ...     clip=jaxclip.clip_by_global_norm(1.0, eps=0.0),
        ...     frozen=jaxclip.by_path(lambda path: path == "embedding"),
        ... )
        >>> params = {"embedding": jnp.array([1.0]), "kernel": jnp.array([1.0, 2.0])}
        >>> grads = {"embedding": jnp.array([9.0]), "kernel": jnp.array([3.0, 4.0])}
        >>> updates, _ = optimizer.update(grads, optimizer.init(params), params)
        >>> print(updates["embedding"], updates["kernel"])
        [0.] [-0.70000005 -1.        ]
    """
    parts = {"optimizer": optimizer, "clip": clip, "clip_each": clip_each}
    for name, part in parts.items():
        if part is not None and not isinstance(part, optax.GradientTransformation):
            raise TypeError(
                f"{_CALLER}({name}=...): expected an Optax transformation, got "
                f"{type(part).__name__}."
            )
    if clip_each is not None and scaler is not None:
        raise ValueError(
            f"{_CALLER}(clip_each=..., scaler=...): the gradients of a micro-batch "
            "are still scaled where clip_each would clip them. Use clip, which comes "
            "after the unscaling, or divide the threshold by no scaler."
        )
    check.at_least(_CALLER, "decay_before_clip", decay_before_clip)

    step = [part for part in (clip, optimizer) if part is not None]
    if not is_zero(decay_before_clip):
        step.insert(0, optax.add_decayed_weights(decay_before_clip))
    chain: optax.GradientTransformation = optax.chain(*step)
    if scaler is not None:
        chain = scaler(chain)
    if accumulate_steps != 1:
        chain = accumulate(chain, accumulate_steps, reduction=reduction)
    if clip_each is not None:
        chain = optax.chain(clip_each, chain)
    if frozen is not None:
        chain = optax.partition(
            {"trained": chain, "frozen": optax.set_to_zero()}, _labels(frozen)
        )
    return optax.with_extra_args_support(chain)


def _labels(frozen: Where) -> Callable[[Any], Any]:
    def labels(params: Any) -> Any:
        marks = leaf_labels(frozen, params, _CALLER, "frozen")
        names = ["frozen" if mark else "trained" for mark in marks]
        return jax.tree.unflatten(jax.tree.structure(params), names)

    return labels
