"""What there is to say of a run of JAX before its first step."""

import importlib.metadata
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxclip.parity._jax._names import Arrays
from jaxclip.parity._trace._options import Options
from jaxclip.parity._trace._records import ModuleRecord, Run
from jaxclip.parity._verify._port._models import LinenModel, Model, NNXModel
from jaxclip.parity._verify._tracing._capture import class_name


def describe(
    model: Model | None,
    optimizer: Any,
    params: Arrays,
    buffers: Iterable[str],
    options: Options,
) -> Run:
    """Say what holds for a whole run.

    Args:
        model: The model; None if the arrays are all that is known.
        optimizer: The Optax transformation, or None.
        params: The parameters by name.
        buffers: The names of the other variables.
        options: What is recorded.
    """
    return Run(
        framework="jax",
        versions=_versions(),
        settings=_settings(),
        dtypes=tuple(dict.fromkeys(str(array.dtype) for array in params.values())),
        modules=tuple(_modules(model, params, buffers)),
        tied={},
        frozen=(),
        optimizer=_made_by(optimizer),
        groups=((*params,),),
        schedulers=(),
        keep=options.keep,
        every=options.every,
    )


def _versions() -> dict[str, str]:
    from jaxclip import __version__

    packages = {"jax": jax, "flax": flax, "optax": optax, "numpy": np}
    found = {name: str(package.__version__) for name, package in packages.items()}
    found["jaxlib"] = importlib.metadata.version("jaxlib")
    return {**found, "jaxclip": __version__, "python": platform.python_version()}


def _settings() -> dict[str, str]:
    # The default one; under a mesh there are several.
    device = min(jnp.zeros(()).devices(), key=lambda device: device.id)
    return {
        "device": f"{device.platform}, {device.device_kind}",
        "devices": str(jax.device_count()),
        "x64": str(jnp.result_type(float) == np.float64),
        "matmul_precision": str(jax.config.values["jax_default_matmul_precision"]),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def _made_by(optimizer: Any) -> str:
    """Name the function that made an Optax transformation."""
    if optimizer is None:
        return ""
    init = optimizer.init
    return f"{init.__module__}.{init.__qualname__.partition('.<locals>')[0]}"


def _modules(
    model: Model | None, params: Iterable[str], buffers: Iterable[str]
) -> Iterator[ModuleRecord]:
    """List the modules: those that hold something, if no others are known."""
    types: Mapping[str, str] = {"": ""}
    match model:
        case NNXModel():
            types = {
                ".".join(map(str, path)): class_name(module)
                for path, module in nnx.iter_graph(model.target)
                if isinstance(module, nnx.Module)
            }
        case LinenModel():
            types = {"": class_name(model.module)}
    held: dict[str, tuple[list[str], list[str]]] = {
        path: ([], []) for path in sorted(types)
    }
    for kind, names in enumerate((params, buffers)):
        for name in names:
            path = name.rpartition(".")[0]
            held.setdefault(path, ([], []))[kind].append(name)
    for path, (own, others) in held.items():
        yield ModuleRecord(path, types.get(path, ""), tuple(own), tuple(others))
