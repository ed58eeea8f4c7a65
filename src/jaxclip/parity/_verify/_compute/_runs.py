"""The port's computations, in the recorded dtype and in float64."""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxclip.parity._arrays import is_float
from jaxclip.parity._verify._compute._evaluation import (
    Evaluation,
    Moves,
    Seen,
    calls_of,
)
from jaxclip.parity._verify._compute._precision import Traced
from jaxclip.parity._verify._compute._products import full_products
from jaxclip.parity._verify._port._models import Model
from jaxclip.parity._verify._port._port import Port
from jaxclip.parity._verify._random._answers import answers
from jaxclip.parity._verify._random._drawn import Account, Drawn
from jaxclip.parity._verify._random._dropouts import Dropouts
from jaxclip.parity._verify._random._float32_draws import drawn_in_float32
from jaxclip.parity._verify._tracing._calls import Calls, completed

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Precision:
    """In which dtype the port computes, and with which inputs.

    Attributes:
        wide: Whether in float64. Otherwise in the recorded dtype; in float32 where
            that is float64, so that there is noise to be measured. None leaves all as
            it is.
        draw: 0 for what the port is given as it is. Otherwise every float but those of
            the batch is changed by an ulp up or down, by lot: which draw of it this is.
        change: By what share of itself each is changed at least: what is computed in
            bfloat16 does not notice an ulp of float32.
    """

    wide: bool | None
    draw: int = 0
    change: float = 0.0

    @property
    def of_arrays(self) -> "Precision":
        """The same, with changes by an ulp of each array's own dtype."""
        return dataclasses.replace(self, change=0.0)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Compute with 64 bits or without, and products of float32 in full."""
        if self.wide is None:
            yield
            return
        with jax.enable_x64(self.wide), full_products():
            yield

    def cast(self, array: Array) -> Array:
        """Return an input as this run has it."""
        if not is_float(array):
            return array
        if self.wide:
            return array.astype(np.float64)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        return _nudged(array, self.draw, self.change) if self.draw else array


SHARE = 0.25
"""How many elements are changed where the change is by the last bit of few bits.

What is computed in bfloat16 is added up in float32: a change of every input is more
than what is rounded.
"""


def _nudged(array: Array, draw: int, change: float) -> Array:
    """Change elements by about an ulp; zeros stay, as masks and paddings are."""
    rng = np.random.default_rng((draw, array.size))
    eps = change or float(jnp.finfo(array.dtype).eps)
    # A product of two numbers of float32 is rounded as one in float64 would be.
    exact = np.float32 if array.dtype == np.float32 and not change else np.float64
    factors = np.asarray([1 - eps, 1 + eps, 1.0], exact)
    ups = np.asarray(rng.integers(2, size=array.shape, dtype=np.uint8))
    if change:
        ups[rng.random(array.shape) >= SHARE] = 2
    nudged: Array = (array * factors[ups]).astype(array.dtype, copy=False)
    return nudged


class Forward(NamedTuple):
    """What the loss function gave, and the gradients.

    Attributes:
        loss: The loss.
        outputs: What it returned beside, or None.
        grads: The gradients, in a tree like the parameters.
        rest: What is no parameter, as it was left.
        calls: What the modules returned.
        account: What became of what torch drew.
    """

    loss: Any
    outputs: Any
    grads: Any
    rest: Any
    calls: Any
    account: Account


class Runs:
    """The parts of a port's training step, each compiled once for a dtype.

    Args:
        model: The port's model.
        port: What the user says of it.
        dropouts: Which dropout of the port is which of torch's.
        float32_draws: Whether a run in float64 draws its dropout as one in float32.

    Attributes:
        dtypes: The dtypes in which the loss function and its gradient compute where
            they are not to compute in float64; known after the first call.
    """

    def __init__(
        self,
        model: Model,
        port: Port,
        dropouts: Dropouts,
        *,
        float32_draws: bool = False,
    ) -> None:
        """Compile nothing yet."""
        self._model, self._port, self._dropouts = model, port, dropouts
        self._float32_draws = float32_draws
        clip = optax.identity() if port.clip is None else port.clip
        self.fresh_clip = jax.jit(clip.init)
        self.fresh_optimizer = jax.jit(port.optimizer.init)
        self._forward = jax.jit(self._computed, static_argnames="wide")
        self.dtypes: set[np.dtype[Any]] = set()
        self._clip = jax.jit(clip.update)
        self._optimize = jax.jit(self._step)

    def forward(
        self,
        variables: Any,
        batch: Mapping[str, Any],
        drawn: Drawn,
        precision: Precision,
    ) -> Forward:
        """Call the loss function, and differentiate it.

        Raises:
            TypeError: If the loss is none.
        """
        params, rest = self._model.split(variables)
        given = params, rest, dict(batch), drawn
        found: Forward = self._forward(*given, wide=precision.wide)
        return found

    def clipped(self, grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        """Return the clipped gradients and the state of the clip."""
        made: tuple[Any, Any] = self._clip(grads, state, params)
        return made

    def optimized(self, grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        """Return the parameters after the optimizer's step, and its state."""
        made: tuple[Any, Any] = self._optimize(grads, state, params)
        return made

    def traced(self, *given: Any, wide: bool) -> Traced:
        """Trace the loss function with its gradient.

        Args:
            *given: Parameters, what is no parameter, the batch, and what was drawn.
            wide: Whether the model is to compute in float64.
        """
        return Traced(partial(self._loss_and_grads, wide=wide), *given)

    def _computed(self, *given: Any, wide: bool) -> Forward:
        traced = self.traced(*given, wide=wide)
        if not wide:
            self.dtypes |= traced.dtypes
        # What a dtype=, an astype or an array of another dtype holds back is float64,
        # too.
        held = wide and traced.dtypes > {np.dtype(np.float64)}
        if held or traced.survey:
            return self.evaluated(traced, *given, lift=bool(held))[0]
        found: Forward = traced(*given)
        return found._replace(calls=completed(found.calls, {}))

    def evaluated(
        self, traced: Traced, *given: Any, lift: bool, moves: Moves | None = None
    ) -> tuple[Forward, list[Seen]]:
        """Evaluate the loss function with its gradient.

        Args:
            traced: The two as they were traced.
            *given: What they are given.
            lift: Whether all floats are float64.
            moves: What is added to elements of values.

        Returns:
            What the loss function gave, with what is known of the inside of
            transformations; and the decisions that were made.
        """
        *_, drawn = given
        account = traced.returned.account
        replay = self._dropouts.replay(drawn, account)
        survey = traced.survey
        known = answers(replay, survey.asked, survey.unseen)
        evaluation = Evaluation(
            lift=lift, moves=moves, answers=known, returned=survey.returned
        )
        found: Forward = traced(*given, evaluation=evaluation)
        self._model.returned(each.path for each in evaluation.marked)
        unknown: Calls = {path: [] for path in survey.marked}
        calls = completed(found.calls, unknown | calls_of(evaluation.marked))
        found = found._replace(calls=calls, account=replay.account)
        return found, evaluation.seen

    def _loss_and_grads(
        self, params: Any, rest: Any, batch: Any, drawn: Drawn, *, wide: bool | None
    ) -> Forward:
        def loss(params: Any) -> Any:
            alike = self._float32_draws and wide
            with drawn_in_float32() if alike else contextlib.nullcontext():
                called = self._model.call(
                    *(self._port.loss_fn, params, rest, batch),
                    replay=self._dropouts.replay(drawn),
                    wide=wide,
                )
            value, outputs = _parts(called.value)
            return value, (outputs, called.rest, called.calls, called.account)

        (value, (outputs, *after)), grads = jax.value_and_grad(loss, has_aux=True)(
            params
        )
        return Forward(value, outputs, grads, *after)

    def _step(self, grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        updates, state = self._port.optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state


def _parts(value: Any) -> tuple[Any, Any]:
    """Split what the loss function returned."""
    loss, outputs = (
        value if isinstance(value, tuple) and len(value) == 2 else (value, None)
    )
    if jnp.shape(loss) != () or not jnp.issubdtype(jnp.result_type(loss), jnp.floating):
        raise TypeError(
            f"loss_fn returned a {type(value).__name__} of shapes "
            f"{jax.tree.map(jnp.shape, value)}; expected the loss, a real scalar, or "
            "(loss, outputs)."
        )
    return loss, outputs


def nested_batch(batch: Iterable[tuple[str, Array]]) -> dict[str, Any]:
    """Put a recorded batch back in the nesting that the loop gave.

    ``x.0`` and ``x.1`` are a tuple of two under ``x``; other parts are keys of dicts.

    Example:
        >>> nested_batch([("x.0", 1), ("x.1.b", 2), ("y", 3)])
        {'x': (1, {'b': 2}), 'y': 3}
    """
    tree: dict[str, Any] = {}
    for name, array in batch:
        *outer, last = name.split(".")
        within = tree
        for part in outer:
            within = within.setdefault(part, {})
        within[last] = array
    return {name: _folded(value) for name, value in tree.items()}


def _folded(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    inner = {key: _folded(item) for key, item in value.items()}
    if [*inner] == [*map(str, range(len(inner)))]:
        return (*inner.values(),)
    return inner
