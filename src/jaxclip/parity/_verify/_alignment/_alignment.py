"""A recording's arrays as the port has them, and the port's as the recording does.

All is compared under torch's names and in torch's layout, which are those of the
recording, and which the user of torch sees.
"""

import itertools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import numpy as np

from jaxclip import convert
from jaxclip._arrays import to_numpy
from jaxclip.convert import ConversionError, WeightMap
from jaxclip.convert._arrays import to_jax
from jaxclip.convert._errors import Shape
from jaxclip.convert._map.weight_map import laid_out
from jaxclip.convert._optimizers.collecting import Collecting
from jaxclip.convert._optimizers.filling import Filling
from jaxclip.convert._optimizers.held import replaced, strangers
from jaxclip.convert._optimizers.layout import Layout
from jaxclip.convert._targets.tree import Leaf, tree_path
from jaxclip.parity._arrays import is_float, unfilled
from jaxclip.parity._trace._records import Run
from jaxclip.parity._trace._step import Step
from jaxclip.parity._verify._alignment._places import Place
from jaxclip.parity._verify._alignment._returned import Returned
from jaxclip.parity._verify._port._models import Model
from jaxclip.parity._verify._port._port import Port
from jaxclip.parity._verify._random._dropouts import Dropouts
from jaxclip.parity._verify._tracing._calls import Calls

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]
Cast = Callable[[Array], Array]
State = Mapping[str, Mapping[str, Any]]


class Alignment:
    """Which array of a recording is which of a port.

    Args:
        model: The port's model.
        port: What the user says of it.
        run: What holds for the recorded run.
        step: A recorded step, for the names and shapes of its weights.

    Attributes:
        weights: The map of the weights.
        dropouts: Which dropout of the port is which of torch's.
        untied: Names of one parameter in torch that are several in the port.

    Raises:
        ConversionError: If the weights do not fit.
    """

    def __init__(self, model: Model, port: Port, run: Run, step: Step) -> None:
        """Make the map, unless the user gives it."""
        self._model = model
        self.weights = _mapping(model, port, run, step)
        if port.layouts is not None:
            self.weights = self.weights.with_layouts(port.layouts)
        said = port.dropouts or {}
        self.dropouts = Dropouts(model.dropouts, run, self.weights, said)
        self._known = {name for entry in self.weights.entries for name in entry.names}
        self._aliases, self._frozen = run.tied, run.frozen
        self._adamax = run.optimizer.rpartition(".")[2] == "Adamax"
        self._parameters = self.weights.parameters()
        trained = self._parameters.entries
        self._trained = {name for entry in trained for name in entry.names}
        in_order = itertools.chain.from_iterable(run.groups)
        self._optimized = [name for name in in_order if name in self._trained]
        self._computed = {
            name
            for entry in self.weights.entries
            if not entry.leaves or entry.pieces is None
            for name in entry.names
        }
        self.untied = _untied(self.weights, run)
        self._returned = Returned(self.weights.modules, self.dropouts)

    def unknown(self, name: str) -> str:
        """Say why a tensor of the recording is not compared, or nothing."""
        if name not in self._known:
            return "named in ignore"
        if name in self._computed:
            return "the map computes it, and does not only move elements about"
        return ""

    def is_alias(self, name: str) -> bool:
        """Say whether what is kept of a parameter is recorded under another name."""
        parameter = name.rpartition("/")[0]
        return any(parameter in others for others in self._aliases.values())

    def variables(self, step: Step, cast: Cast) -> Any:
        """Return the variables that hold a step's weights and buffers."""
        recorded = {**step.params, **step.buffers}
        tensors = {name: cast(array) for name, array in recorded.items()}
        for name, others in self._aliases.items():
            tensors |= {other: tensors[name] for other in others if name in tensors}
        known = {name: tensors[name] for name in tensors if name in self._known}
        return laid_out(self.weights, known, self._model.variables, _given)

    def opt_state(
        self, state: State, fresh: Any, params: Any, count: int, cast: Cast
    ) -> Any:
        """Return a fresh state of a transformation with what torch's optimizer kept."""
        state = self._without_frozen(state, fresh, params)
        kept = {
            # A count of steps is no number that rounds.
            name: {
                key: array if key == "step" else cast(array)
                for key, array in state[name].items()
            }
            for name in self._optimized
            if name in state
        }
        filling = Filling(self._layout(), kept, count, {}, _in_dtype)
        made = replaced(fresh, filling.state, filling.count, adamax=self._adamax)
        if problems := [*strangers(fresh), *filling.problems()]:
            raise ConversionError(problems)
        return made

    def _without_frozen(self, state: State, fresh: Any, params: Any) -> State:
        """Leave out what torch keeps of frozen parameters, and the port does not.

        torch's Adagrad keeps a sum of all that it is given.
        """
        if not any(name in state for name in self._frozen):
            return state
        kept = {name.rpartition("/")[0] for name in self.kept(fresh, None, params)}
        left_out = {*self._frozen} - kept
        return {name: own for name, own in state.items() if name not in left_out}

    def clip_state(self, state: State, fresh: Any, params: Any, cast: Cast) -> Any:
        """Return a fresh state: torch's clips keep none."""
        del state, params, cast
        return fresh

    def kept(self, opt_state: Any, clip_state: Any, params: Any) -> dict[str, Array]:
        """Return what a state keeps of each parameter, by ``"name/key"``."""
        del clip_state, params
        found = Collecting(self._layout(), opt_state, adamax=self._adamax)
        return {
            f"{name}/{key}": np.asarray(value)
            for name, own in found.kept.items()
            for key, value in own.items()
            if value is not None and not (key == "step" and name in found.uncounted)
        }

    def _layout(self) -> Layout:
        return Layout.of(self._parameters, self._optimized)

    def params(self, tree: Any) -> dict[str, Array]:
        """Return a tree like the parameters by torch's names."""
        values = {
            (*self._model.prefix, *tree_path(path)): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        return self._named(values, self._trained)

    def buffers(self, rest: Any) -> dict[str, Array]:
        """Return what is no parameter by torch's names."""
        values = {
            tree_path(path): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(rest)
        }
        return self._named(values, self._known - self._trained)

    def replaced(self, tree: Any, arrays: Arrays, cast: Cast) -> Any:
        """Return a tree like the parameters, with the recorded arrays put in."""
        own = self.params(tree)
        merged = {
            name: cast(arrays[name]) if name in arrays else own[name] for name in own
        }
        for name, others in self._aliases.items():
            if name in arrays:
                merged |= {o: cast(arrays[name]) for o in others if o in merged}
        prefix = self._model.prefix
        values: dict[tuple[str, ...], Array] = {}
        for entry in self._parameters.entries:
            if all(name in merged for name in entry.names):
                made = entry.to_flax(*(merged[name] for name in entry.names))
                values |= zip((leaf.path for leaf in entry.leaves), made, strict=True)

        def put(path: Any, old: Any) -> Any:
            return values.get((*prefix, *tree_path(path)), old)

        return jax.tree_util.tree_map_with_path(put, tree)

    def without(self, tree: Any, names: Collection[str]) -> Any:
        """Return a tree like the parameters, with nothing in the place of some."""
        aliases = (self._aliases.get(name, ()) for name in names)
        known = {*names, *itertools.chain.from_iterable(aliases)} - self._computed
        emptied = {
            leaf.path
            for entry in self._parameters.entries
            if {*entry.names} <= known
            for leaf in entry.leaves
        }
        prefix = self._model.prefix

        def put(path: Any, old: Any) -> Any:
            return unfilled(old) if (*prefix, *tree_path(path)) in emptied else old

        return jax.tree_util.tree_map_with_path(put, tree)

    def _named(
        self, values: Mapping[tuple[str, ...], Any], names: set[str]
    ) -> dict[str, Array]:
        found: dict[str, Array] = {}
        for entry in self.weights.entries:
            if not {*entry.names} <= names - self._computed:
                continue
            arrays = [to_numpy(values[leaf.path]) for leaf in entry.leaves]
            found |= zip(entry.names, entry.to_torch(*arrays), strict=True)
        return found

    def activations(
        self, calls: Calls, recorded: Mapping[Place, Shape]
    ) -> tuple[dict[Place, Array], dict[str, str]]:
        """Return what modules returned, and why that of others is not there."""
        return self._returned.activations(calls, recorded)

    def outputs(self, value: Any) -> dict[str, Array]:
        """Return the outputs of the model as torch's, each by its place."""
        return self._returned.outputs(value)


def _given(leaf: Leaf, array: Array) -> Any:
    """Return an array for a compiled function, which takes floats of NumPy as fast."""
    del leaf
    # Without x64, JAX would make int32 of NumPy's int64, but not of its own.
    return array if is_float(array) else to_jax(array)


def _in_dtype(array: Array, old: Any) -> Array:
    """Return the array of a state, in the dtype of that which it replaces."""
    return array.astype(old.dtype, copy=False)


def _mapping(model: Model, port: Port, run: Run, step: Step) -> WeightMap:
    """Map the recorded weights, under one name each or under all that they have."""
    if port.mapping is not None:
        return port.mapping
    options: dict[str, Any] = {
        "rename": port.rename,
        "ignore": port.ignore,
        "flatten": port.flatten,
        "axes": port.axes,
        "stacked": port.stacked,
    }
    recorded = {**step.params, **step.buffers}
    aliases = {
        other: recorded[name]
        for name, others in run.tied.items()
        if name in recorded
        for other in others
    }
    try:
        return convert.mapping(model.target, recorded, **options)
    except ConversionError:
        if not aliases:
            raise
    return convert.mapping(model.target, recorded | aliases, **options)


def _untied(weights: WeightMap, run: Run) -> list[tuple[str, ...]]:
    variables = {
        name: tuple(leaf.path for leaf in entry.leaves)
        for entry in weights.entries
        for name in entry.names
    }
    found = []
    for name, others in run.tied.items():
        names = tuple(each for each in (name, *others) if each in variables)
        if len({variables[each] for each in names}) > 1:
            found.append(names)
    return found
