"""The kernels that draw random numbers, seen as torch calls them.

Every draw comes down to one of a few: a dropout is a ``bernoulli_``, whether a module
or a function calls it, or the kernel of an attention; so is a layer that is skipped by
chance. What a kernel drew is what it returns.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Kernel(NamedTuple):
    """A kernel that draws random numbers.

    Attributes:
        name: Its name.
        stage: The stage of a step that what it drew belongs to: ``"masks"`` if that is
            zeros and ones, else ``"draws"``.
    """

    name: str
    stage: str


_MASKS = ("bernoulli", "bernoulli_", "native_dropout")
_DRAWS = (
    *("rand", "rand_like", "randn", "randn_like"),
    *("randint", "randint_like", "randperm", "multinomial"),
    *("normal", "normal_", "uniform_", "random_", "exponential_", "log_normal_"),
    *("cauchy_", "geometric_", "poisson", "binomial"),
    *("_standard_gamma", "_sample_dirichlet"),
)
_KERNELS = {
    getattr(torch.ops.aten, name): Kernel(name, stage)
    for stage, names in (("masks", _MASKS), ("draws", _DRAWS))
    for name in names
}


# torch's modes have no types, which a strict check minds of a class and of its making.
class Drawing(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Tells of each draw while it is entered; what is drawn stays what it is.

    Args:
        before: Is called before each.
        drawn: Is called after each, with the kernel and what it drew.
    """

    def __init__(
        self, before: Callable[[], object], drawn: Callable[[Kernel, Tensor], object]
    ) -> None:
        """Keep whom to tell."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._before = before
        self._drawn = drawn

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a kernel."""
        kernel = _KERNELS.get(func.overloadpacket)
        if kernel is None:
            return func(*args, **(kwargs or {}))
        self._before()
        result = func(*args, **(kwargs or {}))
        # This one returns what it left of its input, too.
        self._drawn(kernel, result[1] if kernel.name == "native_dropout" else result)
        return result
