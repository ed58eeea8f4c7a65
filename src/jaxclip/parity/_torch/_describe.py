"""What there is to say of a model and its optimizer before the first step."""

import platform
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from jaxclip.parity._torch._forward import type_name
from jaxclip.parity._trace._records import ModuleRecord, Run


class Names:
    """The names of the parameters of a model and of its optimizer.

    Args:
        model: The model. A parameter that it has more than once has its first name.
        optimizer: The optimizer. What it has and the model has not is named for its
            place in the groups: ``group 0, parameter 2``.

    Attributes:
        parameters: The parameters by name.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Name the parameters."""
        self.parameters: dict[str, Tensor] = dict(model.named_parameters())
        self._names = {id(p): name for name, p in self.parameters.items()}
        self._optimizer = optimizer
        for index, group in enumerate(optimizer.param_groups):
            for place, parameter in enumerate(group["params"]):
                name = f"group {index}, parameter {place}"
                if self._names.setdefault(id(parameter), name) == name:
                    self.parameters[name] = parameter

    def of(self, parameter: Tensor) -> str:
        """Return the name of a parameter, or of none its shape."""
        return self._names.get(id(parameter), f"a tensor of shape {[*parameter.shape]}")

    def of_optimizer(self) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
        """Yield the optimizer's parameters: group, name, and parameter."""
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                yield group, self.of(parameter), parameter


def describe(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedulers: Sequence[Any],
    names: Names,
    **how: Any,
) -> Run:
    """Say what holds for a whole run; ``how`` it is recorded is added as it is."""
    from jaxclip import __version__

    parameters = names.parameters
    devices = dict.fromkeys(str(p.device) for p in parameters.values())
    return Run(
        framework="torch",
        versions={
            "torch": torch.__version__,
            "jaxclip": __version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        settings={
            "device": ", ".join(devices),
            "threads": str(torch.get_num_threads()),
            "float32_matmul_precision": _matmul_precision(),
            "cudnn_tf32": ", ".join(_cudnn_tf32()) or "none",
            "deterministic": str(torch.are_deterministic_algorithms_enabled()),
        },
        dtypes=tuple(
            dict.fromkeys(
                str(p.dtype).removeprefix("torch.") for p in parameters.values()
            )
        ),
        modules=tuple(_modules(model)),
        tied=_tied(model, names),
        frozen=tuple(name for name, p in parameters.items() if not p.requires_grad),
        optimizer=type_name(optimizer),
        groups=tuple(
            tuple(names.of(p) for p in group["params"])
            for group in optimizer.param_groups
        ),
        schedulers=tuple(map(type_name, schedulers)),
        **how,
    )


def _matmul_precision() -> str:
    """Return how precise torch's products of float32 are on CUDA."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # The user set it by backends, for which torch has no name.
        tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
        return "high" if tf32 else "highest"


def _cudnn_tf32() -> Iterator[str]:
    """Yield which parts of cuDNN may compute float32 in TF32."""
    cudnn = torch.backends.cudnn
    for name in ("conv", "rnn"):
        part = getattr(cudnn, name, None)  # before torch 2.9 there is one flag
        allowed = part.fp32_precision == "tf32" if part else cudnn.allow_tf32
        if allowed:
            yield name


def _modules(model: nn.Module) -> Iterator[ModuleRecord]:
    aliases: dict[nn.Module, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        aliases.setdefault(module, []).append(path)
    for module, (path, *others) in aliases.items():
        parameters = module.named_parameters(path, False, False)
        buffers = module.named_buffers(path, False, False)
        yield ModuleRecord(
            path=path,
            type=type_name(module),
            parameters=tuple(name for name, _ in parameters),
            buffers=tuple(name for name, _ in buffers),
            aliases=tuple(others),
        )


def _tied(model: nn.Module, names: Names) -> dict[str, tuple[str, ...]]:
    tied: dict[str, tuple[str, ...]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        first = names.of(parameter)
        if name != first:
            tied[first] = (*tied.get(first, ()), name)
    return tied
