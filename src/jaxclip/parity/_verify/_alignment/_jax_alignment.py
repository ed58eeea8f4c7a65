"""A JAX recording's arrays as a port has them: other names at most, never layouts."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxclip.convert import ConversionError
from jaxclip.convert._errors import Shape, nearest
from jaxclip.convert._names import Rename, target_names
from jaxclip.parity._arrays import as_array, is_float, unfilled
from jaxclip.parity._jax._names import (
    LeafPath,
    from_array,
    is_key,
    leaves,
    path_of,
    state_names,
    to_array,
    variable_names,
)
from jaxclip.parity._trace._step import Step
from jaxclip.parity._verify._alignment._aligned import Array, Arrays, Cast, State
from jaxclip.parity._verify._alignment._places import HIDDEN, Place, flat
from jaxclip.parity._verify._port._models import Model, NNXModel
from jaxclip.parity._verify._port._port import Port
from jaxclip.parity._verify._random._dropouts import Dropouts
from jaxclip.parity._verify._tracing._calls import Calls, plain, unrolled


class JaxAlignment:
    """Which array of a JAX recording is which of a port.

    Of what the port says of torch, ``rename`` and ``ignore`` alone mean something.

    Args:
        model: The port's model.
        port: What the user says of it.
        step: A recorded step, for the names and shapes of its weights.

    Attributes:
        untied: Nothing: Flax lists a parameter under one name.
        dropouts: None: the port draws its masks by the same keys.

    Raises:
        ConversionError: If the weights do not fit.
    """

    untied: Sequence[tuple[str, ...]] = ()

    def __init__(self, model: Model, port: Port, step: Step) -> None:
        """Pair the names."""
        self._model = model
        self.dropouts = Dropouts.none()
        self._rename: Rename | None = port.rename
        self._clips = port.clip is not None
        params, rest = model.split(model.variables)
        trained, others = variable_names(model, params, rest)
        own = {
            **_shapes(params, trained),
            **_shapes(rest, others),
        }
        recorded = {**step.params, **step.buffers}
        ours, problems = target_names(recorded, port.rename, port.ignore)
        shapes = {name: recorded[old].shape for name, old in ours.items()}
        problems += _misfits(ours, shapes, own, _random(model))
        if problems:
            raise ConversionError(problems)
        self._ignored = {*recorded} - {*ours.values()}
        # The recorded names by the paths in the two trees.
        self._trained = {path: ours[name] for path, name in trained.items()}
        self._others = {
            path: ours[name] for path, name in others.items() if name in ours
        }

    def unknown(self, name: str) -> str:
        """Say why a tensor of the recording is not compared, or nothing."""
        return "named in ignore" if name in self._ignored else ""

    def is_alias(self, name: str) -> bool:
        """Say that a name is none of several."""
        del name
        return False

    def variables(self, step: Step, cast: Cast) -> Any:
        """Return the variables that hold a step's weights and buffers."""
        params, rest = self._model.split(self._model.variables)
        return self._model.joined(
            _filled(params, self._trained, step.params, cast),
            _filled(rest, self._others, step.buffers, cast),
        )

    def opt_state(
        self, state: State, fresh: Any, params: Any, count: int, cast: Cast
    ) -> Any:
        """Return a fresh state with what the recorded optimizer kept, leaf by leaf."""
        del count
        recorded = _flat_state(state)
        names = self._state_names(fresh, params, "1." if self._clips else "")
        # What is the clip's is for clip_state to look at.
        own = {
            name: array
            for name, array in recorded.items()
            if not (self._clips and _of_clip(name))
        }
        shapes = {
            name: np.shape(leaf)
            for path, leaf in leaves(fresh).items()
            for name in [names[path]]
            if not is_key(leaf)
        }
        problems = _state_problems(own, names.values(), shapes)
        if problems:
            raise ConversionError(problems)
        return _filled(fresh, names, recorded, cast, keep_dtype=True)

    def clip_state(self, state: State, fresh: Any, params: Any, cast: Cast) -> Any:
        """Return a fresh state of the clip with what the recorded one kept."""
        if not self._clips:
            return fresh
        names = self._state_names(fresh, params, "0.")
        recorded = _flat_state(state)
        return _filled(fresh, names, recorded, cast, keep_dtype=True)

    def kept(self, opt_state: Any, clip_state: Any, params: Any) -> dict[str, Array]:
        """Return what the states keep, by parameter, slash and what it is."""
        parts = {"": opt_state}
        if self._clips:
            parts = {"0.": clip_state, "1.": opt_state}
        found: dict[str, Array] = {}
        for prefix, part in parts.items():
            names = self._state_names(part, params, prefix)
            for path, leaf in leaves(part).items():
                array = to_array(leaf, names[path])
                # What is kept in a narrower dtype rounds there too.
                wide = jnp.result_type(float) == np.float64 and is_float(array)
                found[names[path]] = array.astype(np.float64) if wide else array
        return found

    def _state_names(self, state: Any, params: Any, prefix: str) -> dict[LeafPath, str]:
        """Return the recorded names of what a state keeps, by path."""
        named = state_names(state, {*leaves(params)})
        renamed = {".".join(path): name for path, name in self._trained.items()}
        return {
            path: f"{renamed.get(own, own)}/{prefix}{key}"
            for path, (own, key) in named.items()
        }

    def params(self, tree: Any) -> dict[str, Array]:
        """Return a tree like the parameters by the recorded names."""
        return {
            self._trained[path]: as_array(leaf, "a parameter")
            for path, leaf in leaves(tree).items()
        }

    def buffers(self, rest: Any) -> dict[str, Array]:
        """Return what is no parameter by the recorded names."""
        return {
            self._others[path]: to_array(leaf, "a variable")
            for path, leaf in leaves(rest).items()
            if path in self._others
        }

    def replaced(self, tree: Any, arrays: Arrays, cast: Cast) -> Any:
        """Return a tree like the parameters, with the recorded arrays put in."""
        return _filled(tree, self._trained, arrays, cast)

    def without(self, tree: Any, names: Collection[str]) -> Any:
        """Return a tree like the parameters, with nothing in the place of some."""

        def put(keys: Any, old: Any) -> Any:
            return unfilled(old) if self._trained.get(path_of(keys)) in names else old

        return jax.tree_util.tree_map_with_path(put, tree)

    def activations(
        self, calls: Calls, recorded: Mapping[Place, Shape]
    ) -> tuple[dict[Place, Array], dict[str, str]]:
        """Return what modules returned, and why that of others is not there."""
        calls, hidden = unrolled(calls, {})
        arrays: dict[Place, Array] = {}
        reasons: dict[str, str] = {}
        for module in dict.fromkeys(place.module for place in recorded):
            [own] = target_names([module], self._rename, ())[0]
            for call, output in enumerate(calls.get(own, ())):
                for part, array in flat(plain(output)):
                    arrays[Place(module, call, part)] = array
            if own not in calls:
                reasons[module] = (
                    HIDDEN if own in hidden else f"the port calls no module {own!r}"
                )
        return arrays, reasons

    def outputs(self, value: Any) -> dict[str, Array]:
        """Return the outputs of the model, each by its place."""
        return dict(flat(value))


def _of_clip(name: str) -> bool:
    return name.rpartition("/")[2].startswith("0.")


def _flat_state(state: State) -> dict[str, Array]:
    return {
        f"{name}/{key}": array
        for name, own in state.items()
        for key, array in own.items()
    }


def _shapes(tree: Any, names: Mapping[LeafPath, str]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of leaves by name; of keys, that of their integers."""
    return {
        names[path]: to_array(leaf, repr(names[path])).shape
        for path, leaf in leaves(tree).items()
    }


def _random(model: Model) -> set[str]:
    """Name what the port draws random numbers from: not every recording has any."""
    if not isinstance(model, NNXModel):
        return set()
    state, _ = nnx.split_state(model.variables, nnx.RngState, ...)
    return {".".join(path) for path in leaves(state)}


def _misfits(
    ours: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    own: Mapping[str, tuple[int, ...]],
    optional: set[str],
) -> list[str]:
    """Say which recorded weights and which of the port's have no partner."""
    missing = {name: own[name] for name in own if name not in ours}
    unused = {name: shapes[name] for name in ours if name not in own}
    problems = [
        f"the port's {name!r} {shape} is not in the recording."
        f"{nearest(name, [shape], unused)}"
        for name, shape in missing.items()
        if name not in optional
    ]
    problems += [
        f"the recording's {ours[name]!r} {shape} is not in the port; name it in "
        f"ignore, or say in rename what it is called.{nearest(name, [shape], missing)}"
        for name, shape in unused.items()
    ]
    problems += [
        f"the recording's {ours[name]!r} has the shape {shapes[name]}, and the port's "
        f"{name!r} {own[name]}."
        for name in ours
        if name in own and own[name] != shapes[name]
    ]
    return problems


def _state_problems(
    recorded: Mapping[str, Array],
    names: Iterable[str],
    shapes: Mapping[str, tuple[int, ...]],
) -> list[str]:
    own = {*names}
    problems = [
        f"the port's optimizer keeps {name!r}, which is not in the recorded state: "
        "the two are not made of the same transformations."
        for name in own
        if name not in recorded
    ]
    problems += [
        f"the recorded optimizer kept {name!r}, and the port's does not: the two are "
        "not made of the same transformations."
        for name in recorded
        if name not in own
    ]
    problems += [
        f"the recorded optimizer's {name!r} has the shape {recorded[name].shape}, and "
        f"the port's {shape}."
        for name, shape in shapes.items()
        if name in recorded and recorded[name].shape != shape
    ]
    return sorted(problems)


def _filled(
    tree: Any,
    names: Mapping[LeafPath, str],
    arrays: Arrays,
    cast: Cast,
    *,
    keep_dtype: bool = False,
) -> Any:
    """Put recorded arrays in the place of leaves; leave those of which there is none.

    Args:
        tree: The tree.
        names: The recorded names by path.
        arrays: The recorded arrays.
        cast: What is done to each.
        keep_dtype: Whether a leaf keeps the dtype that it has.
    """

    def put(keys: Any, old: Any) -> Any:
        name = names.get(path_of(keys))
        if name is None or name not in arrays:
            return old
        if is_key(old):
            return from_array(arrays[name], old)
        array = cast(arrays[name])
        return jnp.asarray(array, old.dtype if keep_dtype else None)

    return jax.tree_util.tree_map_with_path(put, tree)
