"""What every schedule is: torch's scheduler as a function of the count of updates."""

import abc
import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxclip.optim.schedules._arithmetic import Real, Whole, float_dtype

Count = int | np.integer[Any] | np.ndarray[Any, Any] | jax.Array


@dataclass(frozen=True, kw_only=True, repr=False)
class Schedule(abc.ABC):
    """A learning rate, or a momentum, as a function of the count of updates so far.

    An Optax schedule: give it to an optimizer as its learning rate, or to
    ``optax.inject_hyperparams``. It prints as the call that makes it.

    A count is an int or an array of integers of any shape, and may be traced. The
    value is float32, or float64 where JAX computes in that; of an int or a NumPy array
    it is computed in float64 and rounded once.

    torch's schedulers make each learning rate of the one before. A scheduler among
    others starts from what they left; `first`, `next` and `continued` are what it does
    there.
    """

    steps_per_epoch: int = 1
    caller: ClassVar[str]

    def __call__(self, count: Count) -> jax.Array:
        """Return the value for the update after ``count`` others."""
        whole = as_whole(self.caller, count)
        if any(isinstance(value, jax.Array) for value in vars(self).values()):
            whole = jnp.asarray(whole)  # NumPy cannot compute with a traced number
        value = self.at(whole // self.steps_per_epoch)
        return jnp.broadcast_to(jnp.asarray(value, float_dtype()), jnp.shape(whole))

    @abc.abstractmethod
    def at(self, epoch: Whole) -> Real:
        """Return the value after so many steps of torch's scheduler."""

    def first(self, lr: float) -> float:
        """Return what torch's scheduler makes of the learning rate when it is made."""
        del lr
        return float(self.at(np.asarray(0)))

    def next(self, epoch: int, lr: float) -> float:
        """Return what its step number ``epoch`` makes of the learning rate."""
        del lr
        return float(self.at(np.asarray(epoch)))

    def continued(self, lr: Real) -> "Schedule":
        """Return the schedule that SequentialLR goes over to at the rate ``lr``."""
        del lr
        return self

    def __repr__(self) -> str:
        """Return the call that makes this schedule."""
        given = {field.name: getattr(self, field.name) for field in self._arguments()}
        arguments = ", ".join(f"{name}={value!r}" for name, value in given.items())
        return f"{self.caller}({arguments})"

    def _arguments(self) -> list["dataclasses.Field[Any]"]:
        """Return the arguments to print: those without a default, or not at it."""
        own = [field for field in dataclasses.fields(self) if field.repr]
        own.sort(key=lambda field: field.name == "steps_per_epoch")
        return [
            field
            for field in own
            if field.default is dataclasses.MISSING
            or getattr(self, field.name) != field.default
        ]


@dataclass(frozen=True, kw_only=True, repr=False)
class Factor(Schedule):
    """A schedule by which torch multiplies the learning rate that it finds."""

    base_lr: float | jax.Array

    def at(self, epoch: Whole) -> Real:
        """Return the base learning rate times the product."""
        return self.base_lr * self.product(epoch)

    @abc.abstractmethod
    def product(self, epoch: Whole) -> Real:
        """Return the product of all factors up to this step."""

    def first(self, lr: float) -> float:
        """Return the learning rate times the first factor."""
        return lr * float(self.product(np.asarray(0)))

    def next(self, epoch: int, lr: float) -> float:
        """Return the learning rate times the factor of one step."""
        before, after = self.product(np.asarray([epoch - 1, epoch])).tolist()
        # Also from 0 to 0, where a polynomial stays.
        return lr if before == after else lr * (after / before)


def as_whole(caller: str, count: Count) -> Whole:
    """Return a count as int64 on the host, on a device as JAX's integers are.

    Raises:
        TypeError: It is no integer.
    """
    array = count if isinstance(count, jax.Array) else np.asarray(count)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(
            f"{caller}: was called with a count of {array.dtype}, expected an int or "
            "an array of integers: the number of updates so far."
        )
    if isinstance(array, jax.Array):
        return array.astype(jnp.result_type(int))
    return array.astype(np.int64)
