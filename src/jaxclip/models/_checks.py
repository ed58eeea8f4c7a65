"""What the NNX and the Linen models ask of their arguments, and how they say so."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp


def check_sizes(**sizes: int) -> None:
    """Refuse a size below 1, by its name."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} is {size}; it must be at least 1.")


def check_channels(x: jax.Array, channels: int) -> None:
    """Refuse an array whose last axis is not the channels; it might be broadcast."""
    if x.ndim == 0 or x.shape[-1] != channels:
        raise ValueError(
            f"x has shape {x.shape}; its last axis must be the channels, of which "
            f"there are {channels}. torch has them on axis 1: jnp.moveaxis(x, 1, -1)."
        )


def check_divides(**sizes: int) -> None:
    """Refuse the first of two sizes if it does not divide the second, by name."""
    (name, size), (whole_name, whole) = sizes.items()
    if whole % size:
        raise ValueError(
            f"{name} is {size}; it must divide {whole_name}, which is {whole}."
        )


def check_rate(**rates: float) -> None:
    """Refuse a probability outside [0, 1], by its name."""
    for name, rate in rates.items():
        if not 0 <= rate <= 1:
            raise ValueError(f"{name} is {rate}; it must be from 0 to 1.")


def check_choice(known: Iterable[str], **choices: str) -> None:
    """Refuse a choice that is none of those known, by its name."""
    names = tuple(known)
    for name, choice in choices.items():
        if choice not in names:
            listed = ", ".join(map(repr, names))
            raise ValueError(f"{name} is {choice!r}; it must be one of {listed}.")


def check_layer_names(names: Iterable[str]) -> None:
    """Refuse a name of a layer that cannot be a part of a dotted path."""
    for name in names:
        if not name or "." in name:
            raise ValueError(
                f"layers has the name {name!r}; a name is a non-empty string "
                "without a dot."
            )


def check_tokens(tokens: jax.Array, *, longest: int | None = None) -> jax.Array:
    """Return ``tokens`` as an array, or say why they are no batch of sequences."""
    tokens = jnp.asarray(tokens)
    if longest is not None and tokens.ndim == 2 and tokens.shape[1] > longest:
        raise ValueError(
            f"tokens has shape {tokens.shape}; a sequence may have {longest} tokens at "
            "most, the block size."
        )
    if tokens.ndim != 2 or tokens.shape[1] == 0:
        raise ValueError(
            f"tokens has shape {tokens.shape}; it must be (B, T), batch first, with "
            "T at least 1. A single sequence is tokens[None]."
        )
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise TypeError(f"tokens has dtype {tokens.dtype}; it must be integers.")
    return tokens


def check_sequences(
    x: jax.Array,
    input_size: int,
    dtype: jnp.dtype,
    *,
    batch_first: bool = True,
    name: str = "x",
) -> jax.Array:
    """Return ``x`` as an array, or say why it is no batch of sequences of vectors."""
    x = jnp.asarray(x)
    if x.ndim != 3 or x.shape[1 if batch_first else 0] == 0 or x.shape[2] != input_size:
        axes, order, single = (
            ("B, T", "batch first", f"{name}[None]")
            if batch_first
            else ("T, B", "time first", f"{name}[:, None]")
        )
        raise ValueError(
            f"{name} has shape {x.shape}; it must be ({axes}, {input_size}), {order}, "
            f"with T at least 1. A single sequence is {single}."
        )
    check_dtype(name, x, dtype)
    return x


def check_vectors(x: jax.Array, input_size: int, dtype: jnp.dtype) -> jax.Array:
    """Return ``x`` as an array, or say why it is no batch of vectors."""
    x = jnp.asarray(x)
    if x.ndim != 2 or x.shape[1] != input_size:
        raise ValueError(
            f"x has shape {x.shape}; it must be (B, {input_size}). A single vector is "
            "x[None]."
        )
    check_dtype("x", x, dtype)
    return x


def check_state(
    state: jax.Array,
    shape: tuple[int, ...],
    dtype: jnp.dtype,
    *,
    name: str = "state",
    axes: str = "(B, H)",
) -> jax.Array:
    """Return ``state`` as an array, or say why the recurrence cannot go on from it."""
    state = jnp.asarray(state)
    if state.shape != shape:
        raise ValueError(
            f"{name} has shape {state.shape}; for this batch it must be {axes} = "
            f"{shape}. Pass the state that the previous call returned, or None for "
            "zeros."
        )
    check_dtype(name, state, dtype)
    return state


def check_dtype(name: str, array: jax.Array, dtype: jnp.dtype) -> None:
    """Refuse an array of another dtype than the parameters', by its name."""
    # Promotion would change the dtype of what is carried from step to step.
    if array.dtype != dtype:
        raise ValueError(
            f"{name} has dtype {array.dtype}, the parameters have {dtype}: cast one "
            f"to the other, for instance {name}.astype({str(dtype)!r})."
        )
