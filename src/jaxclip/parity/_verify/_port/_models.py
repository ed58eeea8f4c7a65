"""The forms in which a port's model is given, called in one way."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import fields
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from jaxclip.convert._targets.bare_trees import callables_in, is_bare
from jaxclip.convert._targets.linen_calls import seen_in
from jaxclip.parity._verify._random._drawn import Account
from jaxclip.parity._verify._random._equinox_dropout import replayed_equinox
from jaxclip.parity._verify._random._flax_dropout import replayed_linen, replayed_nnx
from jaxclip.parity._verify._random._replay import Replay
from jaxclip.parity._verify._tracing._calls import Calls
from jaxclip.parity._verify._tracing._capture import (
    CapturedLinen,
    Order,
    captured_linen,
    captured_nnx,
    class_name,
)
from jaxclip.parity._verify._tracing._equinox import is_dropout
from jaxclip.parity._verify._tracing._paths import named
from jaxclip.parity._verify._tracing._tree_modules import captured_tree

LossFn = Callable[[Any, dict[str, Any]], Any]


class Called(NamedTuple):
    """What calling a loss function gave.

    Attributes:
        value: What it returned.
        rest: The variables that are no parameters, as they are afterwards.
        calls: What the modules returned, where it is known.
        account: What became of what torch drew.
    """

    value: Any
    rest: Any
    calls: Calls
    account: Account


class Model(Protocol):
    """A model whose variables come from outside.

    Attributes:
        target: What ``convert.mapping`` takes.
        variables: The variables, of which the structure alone matters.
        prefix: What the map's paths have before those in the tree of parameters.
        order: The modules in the order in which they returned in the last call that
            was traced.
        dropouts: The paths of Flax's own dropouts; None if they are known when the
            model is called, and not before.
    """

    target: Any
    variables: Any
    prefix: tuple[str, ...]
    order: Order
    dropouts: Collection[str] | None

    def look(self, loss_fn: LossFn, batch: Any) -> None:
        """See what modules a call makes, where nothing else shows them."""
        ...

    def returned(self, paths: Iterable[str]) -> None:
        """Hear which modules returned inside of transformations, in order."""
        ...

    def split(self, variables: Any) -> tuple[Any, Any]:
        """Return the parameters, which an optimizer is given, and the rest."""
        ...

    def joined(self, params: Any, rest: Any) -> Any:
        """Return the variables: the inverse of ``split``."""
        ...

    def call(
        self,
        loss_fn: LossFn,
        params: Any,
        rest: Any,
        batch: Any,
        *,
        replay: Replay,
        wide: bool | None,
    ) -> Called:
        """Call the loss function.

        The model computes in float64 if ``wide``, otherwise in float32 where it says
        float64; in what it says if that is None.
        """
        ...


class NNXModel:
    """An NNX module."""

    prefix: tuple[str, ...] = ()

    def __init__(self, module: nnx.Module) -> None:
        """Take the module apart."""
        self.target = module
        self.graphdef, self.variables = nnx.split(module)
        self.order: Order = []
        self.dropouts: Collection[str] | None = [
            ".".join(map(str, path))
            for path, part in nnx.iter_graph(module)
            if isinstance(part, nnx.Dropout)
        ]

    def look(self, loss_fn: LossFn, batch: Any) -> None:
        """See nothing more: all modules are in attributes."""

    def returned(self, paths: Iterable[str]) -> None:
        """Hear nothing new: each says so when it is called."""

    def split(self, variables: Any) -> tuple[Any, Any]:
        """Take what is ``nnx.Param`` for the parameters."""
        params, rest = nnx.split_state(variables, nnx.Param, ...)
        return params, rest

    def joined(self, params: Any, rest: Any) -> Any:
        """Merge the states."""
        return nnx.merge_state(params, rest)

    def call(
        self,
        loss_fn: LossFn,
        params: Any,
        rest: Any,
        batch: Any,
        *,
        replay: Replay,
        wide: bool | None,
    ) -> Called:
        """Give the loss function a module of its own."""
        module = nnx.merge(self.graphdef, params, rest, copy=True)
        for _, part in nnx.iter_modules(module):
            for name, dtype in _dtypes(vars(part), wide).items():
                setattr(part, name, dtype)
        # What is captured is what the replayed dropouts return.
        with named(module), replay.active(), replayed_nnx(replay):
            with captured_nnx(module) as captured:
                value = loss_fn(module, batch)
        self.order = captured.order
        rest = self.split(nnx.state(module))[1]
        return Called(value, rest, captured.calls, replay.account)


class LinenModel:
    """A Linen module and its variables."""

    prefix: tuple[str, ...] = ("params",)

    def __init__(self, module: nn.Module, variables: Mapping[str, Any]) -> None:
        """Keep them."""
        self.module = module
        self.variables = {**variables}
        self.target: Any = (module, self.variables)
        self.order: Order = []
        self.dropouts: Collection[str] | None = None

    def look(self, loss_fn: LossFn, batch: Any) -> None:
        """See what modules the loss function calls, those of compact methods too."""
        module = self._computing(wide=True)

        def call(variables: Any, batch: Any) -> None:
            loss_fn(LinenFunction(module, variables), batch)

        with jax.enable_x64(True):
            # As they are in a run in float64: a layer may want both to be alike.
            _, seen = seen_in(call, *jax.tree.map(_widened, (self.variables, batch)))
        self.target = self.module, self.variables, seen

    def returned(self, paths: Iterable[str]) -> None:
        """Hear nothing new: each says so when it is called."""

    def split(self, variables: Any) -> tuple[Any, Any]:
        """Take the collection ``params`` for the parameters."""
        rest = {name: tree for name, tree in variables.items() if name != "params"}
        return variables["params"], rest

    def joined(self, params: Any, rest: Any) -> Any:
        """Put the parameters back in their collection."""
        return {"params": params, **rest}

    def call(
        self,
        loss_fn: LossFn,
        params: Any,
        rest: Any,
        batch: Any,
        *,
        replay: Replay,
        wide: bool | None,
    ) -> Called:
        """Give the loss function what calls ``apply``."""
        module = self._computing(wide=wide)
        # What is captured is what the replayed dropouts return.
        with replay.active(), captured_linen() as captured, replayed_linen(replay):
            variables = {"params": params, **rest}
            bound = LinenFunction(module, variables, captured)
            value = loss_fn(bound, batch)
        self.order = captured.order
        rest = self.split(bound.variables)[1]
        return Called(value, rest, captured.calls, replay.account)

    def _computing(self, *, wide: bool | None) -> nn.Module:
        """Return the module, held to no other dtype than it is to compute in."""
        own = {f.name: getattr(self.module, f.name) for f in fields(self.module)}
        return self.module.clone(**_dtypes(own, wide))


class LinenFunction:
    """A Linen module with variables: ``model(x, train=True)`` calls ``apply``.

    What ``apply`` changes in the variables is kept, so that there is no ``mutable``.
    """

    def __init__(
        self,
        module: nn.Module,
        variables: Mapping[str, Any],
        captured: CapturedLinen | None = None,
    ) -> None:
        """Keep them; what the modules return is captured, if anybody does."""
        self.module = module
        self.variables = {**variables}
        self._captured = captured or CapturedLinen()

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Call the module; options such as ``rngs`` and ``method`` are ``apply``'s."""
        if "mutable" in options:
            raise TypeError(
                "model(..., mutable=...): the model that loss_fn is given keeps the "
                "variables that a call changes. Leave mutable out; what is returned is "
                "the output alone."
            )
        with self._captured.of_call():
            output, changed = self.module.apply(
                self.variables,
                *args,
                **options,
                mutable=[name for name in self.variables if name != "params"],
            )
        self.variables |= changed
        return output


class BareModel:
    """A tree of parameters, as a module of Equinox is; what else is in it stays."""

    prefix: tuple[str, ...] = ()

    def __init__(self, tree: Any) -> None:
        """Take the parameters out."""

        def is_param(leaf: Any) -> bool:
            dtype = getattr(leaf, "dtype", None)
            return dtype is not None and jnp.issubdtype(dtype, jnp.inexact)

        parts = callables_in(tree).items()
        self._parts = {".".join(path): part for path, part in parts}
        self.variables = jax.tree.map(lambda x: x if is_param(x) else None, tree)
        self._others = jax.tree.map(lambda x: None if is_param(x) else x, tree)
        self.target: Any = self.variables
        self.order: Order = []
        self.dropouts: Collection[str] | None = [
            path for path, part in self._parts.items() if is_dropout(part)
        ]

    def look(self, loss_fn: LossFn, batch: Any) -> None:
        """See nothing more: what modules there are is in the tree."""

    def returned(self, paths: Iterable[str]) -> None:
        """Keep their order: none knows its path when it is called."""
        self.order = [
            (path, class_name(self._parts[path]))
            for path in paths
            if path in self._parts
        ]

    def split(self, variables: Any) -> tuple[Any, Any]:
        """Take all for parameters."""
        return variables, ()

    def joined(self, params: Any, rest: Any) -> Any:
        """Return the parameters, which are all."""
        del rest
        return params

    def call(
        self,
        loss_fn: LossFn,
        params: Any,
        rest: Any,
        batch: Any,
        *,
        replay: Replay,
        wide: bool | None,
    ) -> Called:
        """Give the loss function the tree with the parameters."""
        del wide
        tree = jax.tree.map(
            lambda param, other: other if param is None else param,
            *(params, self._others),
            is_leaf=lambda leaf: leaf is None,
        )
        types = {type(part) for part in self._parts.values()}
        with replay.active(), captured_tree(types, replayed_equinox(replay)):
            value = loss_fn(tree, batch)
        return Called(value, rest, {}, replay.account)


def _widened(leaf: Any) -> Any:
    """Return the shape of an array in float64, of what is no float as it is."""
    if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
        return leaf
    return jax.ShapeDtypeStruct(jnp.shape(leaf), np.float64)


def _dtypes(attributes: Mapping[str, Any], wide: bool | None) -> dict[str, Any]:
    """Return those of a module's attributes that hold it to a dtype, with another.

    Args:
        attributes: All that it has, by name.
        wide: Whether it is to compute in float64; otherwise in no wider dtype than
            float32. None leaves it as it is.
    """
    found: dict[str, Any] = {}
    if wide is None:
        return found
    for name, value in attributes.items():
        if not name.endswith("dtype") or value is None:
            continue
        try:
            dtype = jnp.dtype(value)
        except TypeError:  # a function, as promote_dtype is
            continue
        if wide and jnp.issubdtype(dtype, jnp.floating):
            found[name] = np.dtype(np.float64)
        elif dtype == np.float64:
            found[name] = np.dtype(np.float32)
    return found


def read_model(model: Any) -> Model:
    """Read the model of a port.

    Raises:
        TypeError: If it is none of those that `Port` takes.
    """
    match model:
        case nnx.Module():
            return NNXModel(model)
        # loss_fn shows how it is called, which from_torch is told.
        case (nn.Module() as module, Mapping() as variables, *_):
            return LinenModel(module, variables)
        case _ if is_bare(model):
            return BareModel(model)
    given = type(model).__name__
    raise TypeError(
        f"Port(model=...) is a {given}; it must be an NNX module, a pair (module, "
        "variables) of a Linen module and what its init returns, or a tree of "
        "parameters, as nested dicts are."
    )
