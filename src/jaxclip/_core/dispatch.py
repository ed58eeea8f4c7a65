"""Call a function on many arrays as one compiled program."""

import functools
from collections.abc import Callable
from typing import Any

import jax


def call_compiled(function: Callable[..., Any], *arrays: Any, **options: Any) -> Any:
    """Call ``function(*arrays, **options)`` as one compiled program.

    Outside ``jit`` JAX dispatches an operation at a time, and a clip is several
    operations for each leaf. Inside ``jit`` this adds nothing: the call is inlined.

    Args:
        function: Defined at module level, so that compiled programs are found again.
        *arrays: Trees of arrays.
        **options: Compile-time constants, hashable. One that is traced, as
            ``optax.inject_hyperparams`` makes of every number, means that the caller
            is being compiled already, and ``function`` is called as it is.

    Returns:
        What ``function`` returns.
    """
    if any(isinstance(option, jax.core.Tracer) for option in options.values()):
        return function(*arrays, **options)
    return _compiled(function, tuple(sorted(options.items())), *arrays)


@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def _compiled(
    function: Callable[..., Any], options: tuple[tuple[str, Any], ...], *arrays: Any
) -> Any:
    return function(*arrays, **dict(options))
