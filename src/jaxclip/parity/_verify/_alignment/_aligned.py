"""What is asked of an alignment, of whichever framework the recording is."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from jaxclip.convert._errors import Shape
from jaxclip.parity._trace._step import Step
from jaxclip.parity._verify._alignment._places import Place
from jaxclip.parity._verify._random._dropouts import Dropouts
from jaxclip.parity._verify._tracing._calls import Calls

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]
Cast = Callable[[Array], Array]
State = Mapping[str, Mapping[str, Any]]


class Aligned(Protocol):
    """Which array of a recording is which of a port.

    Attributes:
        untied: Names of one parameter in the recording that are several in the port.
    """

    @property
    def dropouts(self) -> Dropouts:
        """Which dropout of the port is which of the recorded model's."""
        ...

    @property
    def untied(self) -> Sequence[tuple[str, ...]]: ...

    def unknown(self, name: str) -> str:
        """Say why a tensor of the recording is not compared, or nothing."""
        ...

    def is_alias(self, name: str) -> bool:
        """Say whether what is kept of a parameter is recorded under another name."""
        ...

    def variables(self, step: Step, cast: Cast) -> Any:
        """Return the variables that hold a step's weights and buffers."""
        ...

    def opt_state(
        self, state: State, fresh: Any, params: Any, count: int, cast: Cast
    ) -> Any:
        """Return a fresh state with what the recorded optimizer kept.

        Raises:
            ConversionError: If it does not fit.
        """
        ...

    def clip_state(self, state: State, fresh: Any, params: Any, cast: Cast) -> Any:
        """Return a fresh state of the clip with what the recorded one kept."""
        ...

    def kept(self, opt_state: Any, clip_state: Any, params: Any) -> dict[str, Array]:
        """Return what the states keep, by ``"name/key"``."""
        ...

    def params(self, tree: Any) -> dict[str, Array]:
        """Return a tree like the parameters by the recorded names."""
        ...

    def buffers(self, rest: Any) -> dict[str, Array]:
        """Return what is no parameter by the recorded names."""
        ...

    def replaced(self, tree: Any, arrays: Arrays, cast: Cast) -> Any:
        """Return a tree like the parameters, with the recorded arrays put in."""
        ...

    def without(self, tree: Any, names: Collection[str]) -> Any:
        """Return a tree like the parameters, with nothing in the place of some.

        Args:
            tree: The tree.
            names: The recorded names of what is left out.
        """
        ...

    def activations(
        self, calls: Calls, recorded: Mapping[Place, Shape]
    ) -> tuple[dict[Place, Array], dict[str, str]]:
        """Return what modules returned, and why that of others is not there.

        Args:
            calls: What the port's returned.
            recorded: The shapes of the recorded activations, in order.
        """
        ...

    def outputs(self, value: Any) -> dict[str, Array]:
        """Return the outputs of the model, each by its place."""
        ...
