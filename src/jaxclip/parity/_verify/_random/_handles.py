"""What a port says where it draws random numbers by hand, to be given torch's."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxclip.convert._rules import layouts
from jaxclip.convert._rules.layouts import SAME, Layout
from jaxclip.parity._trace._records import OUTSIDE
from jaxclip.parity._verify._random._replay import ACTIVE
from jaxclip.parity._verify._tracing._inside import Kind, asked


def replayed_mask(module: str | None, keep: Any, *, layout: Layout = SAME) -> Any:
    """Return what a dropout is to keep: while it is verified, what torch's kept.

    For dropout that is written by hand, and whatever else draws zeros and ones.
    `verify` and `compare` let it keep what torch's did in the recorded run, call by
    call; everywhere else ``keep`` comes back as it is, and costs nothing. Flax's own
    ``Dropout`` needs no such line.

    Args:
        module: The path of torch's dropout; where that is a function, of the module
            that calls it, ``""`` for the model itself; None if the loop does. In the
            body of a scan over layers ``*`` stands for the number of the layer:
            ``"blocks.*.drop"``.
        keep: What the port drew: booleans, of the shape of what is dropped, or of
            length 1 along the axes along which a draw is for all, as torch's
            ``Dropout2d`` has it. Inside of ``jax.vmap`` it is that of one row, drawn
            with a key of its own.
        layout: How ``keep`` lies, if not as in torch: ``"channels_last"`` or another
            of the words that ``WeightMap.with_layouts`` takes; inside of ``jax.vmap``
            with the rows in front.

    Returns:
        Booleans of the shape of ``keep``.

    Raises:
        TypeError: If ``keep`` is not boolean. The scale by which a dropout makes up for
            what it drops is the port's own, so that it is compared.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jaxclip.parity import replayed_mask
        >>> def dropout(x, rate, key):
        ...     keep = jax.random.bernoulli(key, 1 - rate, x.shape)
        ...     keep = replayed_mask("drop", keep)
        ...     return jnp.where(keep, x / (1 - rate), 0)
        >>> dropout(jnp.ones(3), 0.5, jax.random.key(0)).shape
        (3,)
    """
    dtype = jnp.result_type(keep)
    if dtype != np.bool_:
        raise TypeError(
            f"replayed_mask({module!r}, keep): keep is {dtype}; it must be boolean, "
            "which elements are kept. Scale what is kept afterwards: "
            "jnp.where(keep, x / (1 - rate), 0)."
        )
    kept = _asked("replayed_mask", module, keep, layout)
    return keep if kept is None else kept


def replayed_draw(module: str | None, drawn: Any, *, layout: Layout = SAME) -> Any:
    """Return random numbers: while they are verified, what torch drew in their place.

    For whatever draws numbers that the loss depends on: the noise of a variational
    autoencoder or of a diffusion, a sampled step of time, a permutation. `verify` and
    `compare` give out what torch's functions drew in the recorded step, one array for
    each call, in torch's order; everywhere else ``drawn`` comes back as it is, and
    costs nothing. For zeros and ones, as a dropout draws them, see `replayed_mask`.

    Args:
        module: The path of the torch module in whose ``forward`` the numbers were
            drawn, ``""`` for the model itself; None if the loop drew them. In the body
            of a scan over layers ``*`` stands for the number of the layer.
        drawn: What the port drew; inside of ``jax.vmap`` for one row, with a key of
            its own.
        layout: How ``drawn`` lies, if not as in torch: ``"channels_last"`` or another
            of the words that ``WeightMap.with_layouts`` takes; inside of ``jax.vmap``
            with the rows in front.

    Returns:
        Numbers of the shape and the dtype of ``drawn``.

    Raises:
        TypeError: If ``drawn`` is boolean.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jaxclip.parity import replayed_draw
        >>> def sample(mean, log_variance, key):
        ...     noise = jax.random.normal(key, mean.shape)
        ...     noise = replayed_draw("", noise)
        ...     return mean + noise * jnp.exp(log_variance / 2)
        >>> sample(jnp.ones(3), jnp.zeros(3), jax.random.key(0)).shape
        (3,)
    """
    dtype = jnp.result_type(drawn)
    if dtype == np.bool_:
        raise TypeError(
            f"replayed_draw({module!r}, drawn): drawn is boolean, as which elements a "
            "dropout keeps is: use replayed_mask."
        )
    found = _asked("replayed_draw", module, drawn, layout)
    return drawn if found is None else jnp.asarray(found, dtype)


def _asked(
    kind: Kind,
    module: str | None,
    drawn: Any,
    layout: Layout,
) -> Any:
    """Return what torch drew in the place of a draw; None outside a verification."""
    replay = ACTIVE.get()
    if replay is None:
        return None
    layout = layouts.checked(layout, "layout")
    place = OUTSIDE if module is None else module
    shape = jnp.shape(drawn)
    question = replay.question(kind, place, shape, layout)
    if question is not None:
        return asked(question, drawn)
    ask = replay.of_torch if kind == "replayed_mask" else replay.draw_of
    return ask(place, shape, layout)


# Where users import them from, which is what they should see.
replayed_mask.__module__ = replayed_draw.__module__ = "jaxclip.parity"
