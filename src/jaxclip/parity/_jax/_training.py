"""A training of JAX, taken step by step, with all that a step computes in between."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxclip.parity._verify._compute._bench import norm_in
from jaxclip.parity._verify._compute._runs import Forward, Precision, Runs
from jaxclip.parity._verify._port._models import LinenModel, NNXModel, read_model
from jaxclip.parity._verify._port._port import Port
from jaxclip.parity._verify._random._drawn import Drawn
from jaxclip.parity._verify._random._dropouts import Dropouts
from jaxclip.parity._verify._tracing._calls import Calls, plain, unrolled
from jaxclip.parity._verify._tracing._capture import Order


class Variables(NamedTuple):
    """What a step starts from, and what it leaves.

    Attributes:
        params: The parameters.
        rest: The other variables.
        clip_state: The state of the clip that is given apart, or of none.
        opt_state: The state of the optimizer.
    """

    params: Any
    rest: Any
    clip_state: Any
    opt_state: Any


class Taken(NamedTuple):
    """A step that was taken.

    Attributes:
        batch: The batch, as arrays of JAX.
        before: What the step started from.
        forward: What the loss function gave, and the gradients.
        clipped: The clipped gradients; None if no clip is given apart.
        total_norm: The norm that a clip of jaxclip took, if there is one.
        after: What the step left.
    """

    batch: Mapping[str, Any]
    before: Variables
    forward: Forward
    clipped: Any
    total_norm: Any
    after: Variables


class Training:
    """The training that a port describes, from the weights that its model has.

    Args:
        port: The port.

    Attributes:
        model: Its model.
        now: The weights and the states as they are.
    """

    def __init__(self, port: Port) -> None:
        """Start from the model's own weights, and from fresh states."""
        self._port = port
        self.model = read_model(port.model)
        self._runs = Runs(self.model, port, Dropouts.none())
        params, rest = self.model.split(self.model.variables)
        # Copies of its own: a loop of the user's may give its arrays away.
        params, rest = jax.tree.map(jnp.copy, (params, rest))
        self.now = Variables(
            params,
            rest,
            self._runs.fresh_clip(params),
            self._runs.fresh_optimizer(params),
        )

    @property
    def clips(self) -> bool:
        """Whether a clip is given apart."""
        return self._port.clip is not None

    def take(self, batch: Mapping[str, Any]) -> Taken:
        """Compute a step; ``now`` stays as it is."""
        given = jax.tree.map(_strong, dict(batch))
        before = self.now
        variables = self.model.joined(before.params, before.rest)
        forward = self._runs.forward(variables, given, Drawn(), Precision(None))
        grads, clip_state = self._runs.clipped(
            forward.grads, before.clip_state, before.params
        )
        params, opt_state = self._runs.optimized(grads, before.opt_state, before.params)
        return Taken(
            batch=given,
            before=before,
            forward=forward,
            clipped=grads if self.clips else None,
            total_norm=norm_in((clip_state, opt_state)),
            after=Variables(params, forward.rest, clip_state, opt_state),
        )

    def trained(self) -> Any:
        """Return the port's model with the weights as they are, in the form given."""
        variables = self.model.joined(self.now.params, self.now.rest)
        match self.model:
            case NNXModel():
                return nnx.merge(self.model.graphdef, variables, copy=True)
            case LinenModel():
                return self.model.module, variables
        return variables


def in_order(calls: Calls, order: Order) -> Iterator[tuple[str, str, int, Any]]:
    """Yield what modules returned: path, class, number of the call, and output.

    Args:
        calls: What they returned, by path.
        order: The order in which they did, as it was when the model was traced.
    """
    calls, _ = unrolled(calls, {})
    seen: Counter[str] = Counter()
    types = dict(order)
    for path in [path for path, _ in order] + [p for p, o in calls.items() for _ in o]:
        call = seen[path]
        if call < len(calls.get(path, ())):
            seen[path] += 1
            yield path, types.get(path, ""), call, plain(calls[path][call])


def _strong(leaf: Any) -> Any:
    """Return an array whose dtype does not depend on what it is used with."""
    return leaf if isinstance(leaf, jax.Array) else jnp.asarray(np.asarray(leaf))
