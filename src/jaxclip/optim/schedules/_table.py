"""Schedules of which only the next value follows from the last: tables of them."""

import abc
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np

from jaxclip.optim.schedules._arithmetic import Real, Whole, lookup


@dataclass(frozen=True, kw_only=True, repr=False)
class Tabulated(abc.ABC):
    """Values that are computed one after the other, on the host."""

    total_iters: int | None = None

    @abc.abstractmethod
    def values(self, last: int) -> np.ndarray[Any, Any]:
        """Return the values from 0 to ``last``, in float64."""

    def tabulated(self, epoch: Whole, caller: str) -> Real:
        """Return values; past ``total_iters`` the one there.

        Raises:
            TypeError: The count is traced, and no one said how far to tabulate.
        """
        if self.total_iters is not None:
            return lookup(self._table, epoch)
        if isinstance(epoch, jax.core.Tracer):
            raise TypeError(
                f"{caller}: was called with a traced count, as under jit. Each value "
                "is made of the one before, so that they have to be tabulated: say how "
                "many there are, total_iters=..., in steps of the scheduler."
            )
        whole = np.asarray(epoch)
        return lookup(self.values(int(whole.max(initial=0))), whole)

    @cached_property
    def _table(self) -> np.ndarray[Any, Any]:
        assert self.total_iters is not None
        return self.values(self.total_iters)
