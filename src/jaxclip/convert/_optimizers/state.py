"""The public functions: an optimizer's state from torch, and to torch."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import optax
from flax import linen as nn
from flax import nnx

from jaxclip.convert._arrays import to_tensor
from jaxclip.convert._convert import mapping as mapping_of
from jaxclip.convert._errors import ConversionError
from jaxclip.convert._map.weight_map import WeightMap
from jaxclip.convert._optimizers.checkpoint import Checkpoint, read_checkpoint
from jaxclip.convert._optimizers.collecting import Collecting
from jaxclip.convert._optimizers.filling import Filling, Kept
from jaxclip.convert._optimizers.held import replaced, strangers
from jaxclip.convert._optimizers.layout import Layout
from jaxclip.convert._optimizers.parameters import ParamNames, parameter_names
from jaxclip.convert._optimizers.position import (
    count_of,
    gone_on,
    plateau_of,
    scheduler_state,
)
from jaxclip.convert._optional import need
from jaxclip.convert._targets.bare_trees import arrays_in, is_bare

if TYPE_CHECKING:
    import torch


def opt_state_from_torch(
    source: object,
    target: Any,
    transformation: optax.GradientTransformation,
    *,
    params: Any = None,
    mapping: WeightMap | None = None,
    param_names: ParamNames | None = None,
    model: Any = None,
    ignore: Iterable[str] = (),
    scheduler: Any = None,
    steps_per_epoch: int = 1,
    count: int | None = None,
    key: str | None = None,
) -> Any:
    """Return the state of a transformation that goes on where a torch optimizer is.

    It is what ``transformation.init(params)`` returns, in which the optimizers' states,
    wherever they are (in ``optax.chain``, ``partition``, ``masked``, ``MultiSteps``,
    ``inject_hyperparams``), have torch's values: averages, buffers and step counts, an
    array laid out as the weight is. A parameter that torch never stepped keeps what
    ``init`` made. Those of ``jaxclip.optim`` are known, and of Optax the states of
    ``adam``, ``adamw``, ``adamax``, ``rmsprop``, ``adagrad``, ``adadelta``, momentum
    and schedules. What clips, and other transformations that torch does not have,
    start anew.

    An ``nnx.Optimizer`` takes it so::

        structure = jax.tree.structure(optimizer.opt_state)
        optimizer.opt_state = jax.tree.unflatten(structure, jax.tree.leaves(state))

    Hyperparameters are the transformation's own; torch's are looked at by
    ``optimizer_from_torch``.

    Args:
        source: A torch optimizer; its state dict; or a checkpoint that holds one, a
            mapping or the path of a file, of which nothing is unpickled but tensors.
        target: The Flax model, with values, as ``from_torch`` returns it.
        transformation: The Optax transformation.
        params: What ``init`` is given: by default the ``nnx.Param`` of an NNX model,
            and what lies in ``"params"`` of Linen's variables.
        mapping: The map of the weights, if ``convert.mapping(target)`` is not it.
        param_names: torch's names of the optimizer's parameters, in its order: a list,
            or one for each group. By default those that the optimizer stores (if it
            was made from ``named_parameters()``), or that ``model`` gives.
        model: The torch model of a live optimizer; otherwise it, or its state dict,
            for its order, which is that of the parameters of an optimizer of one
            group. By default the state dict that lies in the checkpoint.
        ignore: Patterns (``"head.*"``, as in ``fnmatch``) of torch's names of
            parameters that the target does not have, as those of a loss.
        scheduler: torch's scheduler or its state dict, for the number of updates; by
            default that in the checkpoint.
        steps_per_epoch: Updates for each step of the scheduler.
        count: The number of updates so far, of which schedules are functions; by
            default the scheduler's or the parameters' own.
        key: Under which key of the checkpoint the optimizer's state dict lies.

    Returns:
        The state.

    Raises:
        ConversionError: If anything is left over, missing or does not fit, or it is
            not clear which parameter is which: one error for all that is wrong.
        TypeError: If an argument is of another type.
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, or holds no optimizer, or several.
        ImportError: If torch is needed, and missing.

    Example:
        >>> import torch
        >>> from flax import nnx
        >>> from jaxclip import convert, optim
        >>> layer = torch.nn.Linear(3, 1)
        >>> optimizer = torch.optim.AdamW(layer.parameters())
        >>> layer(torch.ones(2, 3)).sum().backward()
        >>> optimizer.step()
        >>> target = convert.from_torch(nnx.Linear(3, 1, rngs=nnx.Rngs(0)), layer)
        >>> state = opt_state_from_torch(optimizer, target, optim.adamw(), model=layer)
        >>> state.step, state.exp_avg["kernel"].shape
        (Array([1, 1], dtype=int32), (3, 1))
    """
    checkpoint = read_checkpoint(source, key)
    weights = parameter_map(target, mapping, checkpoint, model, ignore)
    names = parameter_names(
        checkpoint, weights, param_names=param_names, model=model, ignore=ignore
    )
    kept = _by_name(checkpoint, names)
    schedulers = checkpoint.schedulers
    if scheduler is not None:
        schedulers = (scheduler_state(scheduler),)
    if count is None:
        steps = [int(own["step"]) for own in kept.values() if "step" in own]
        count = count_of(steps, schedulers, steps_per_epoch=steps_per_epoch)
    plateau = plateau_of(schedulers, checkpoint.groups)
    filling = Filling(Layout.of(weights, names), kept, count, plateau)
    fresh = transformation.init(trained_params(target) if params is None else params)
    state = replaced(fresh, filling.state, filling.count, adamax=checkpoint.is_adamax)
    if problems := [*strangers(fresh), *filling.problems()]:
        raise ConversionError(problems)
    return state


def opt_state_to_torch(
    opt_state: Any,
    target: Any,
    optimizer: object,
    *,
    mapping: WeightMap | None = None,
    param_names: ParamNames | None = None,
    model: Any = None,
    ignore: Iterable[str] = (),
    scheduler: Any = None,
    steps_per_epoch: int = 1,
    key: str | None = None,
) -> dict[str, Any]:
    """Return what torch's optimizer loads to go on where a transformation is.

    The inverse of ``opt_state_from_torch``. Parameter groups are those of
    ``optimizer``, with its hyperparameters. With a scheduler they are what it makes
    of them by the time that ``opt_state`` has reached.

    Args:
        opt_state: The state of a transformation, or of an ``nnx.Optimizer``.
        target: The Flax model.
        optimizer: The torch optimizer that is to go on, its state dict, or a
            checkpoint: it says which parameter is which, and is not changed.
        mapping: As ``opt_state_from_torch`` takes it.
        param_names: The same.
        model: The same.
        ignore: The same. What ``optimizer`` keeps of these stays as it is.
        scheduler: The torch scheduler of the optimizer, as it was when training went
            over to JAX or before; it is not changed.
        steps_per_epoch: Updates for each step of the scheduler.
        key: As ``opt_state_from_torch`` takes it.

    Returns:
        A checkpoint without the weights: a state dict for ``load_state_dict`` under
        ``"optimizer"``, and with a scheduler one under ``"scheduler"``. Tensors are
        copies, on the CPU.

    Raises:
        ConversionError: If anything does not fit: one error for all that is wrong.
        TypeError: If an argument is of another type.
        ImportError: If torch is missing.

    Example:
        >>> import torch
        >>> from flax import nnx
        >>> from jaxclip import optim
        >>> layer = torch.nn.Linear(3, 1)
        >>> optimizer = torch.optim.AdamW(layer.named_parameters())
        >>> target = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
        >>> state = optim.adamw().init(nnx.state(target, nnx.Param))
        >>> made = opt_state_to_torch(state, target, optimizer)
        >>> optimizer.load_state_dict(made["optimizer"])
        >>> optimizer.state[layer.weight]["exp_avg"]
        tensor([[0., 0., 0.]])
    """
    need("torch", extra="torch", reason="opt_state_to_torch")
    if not isinstance(opt_state, tuple | list | dict):
        raise TypeError(
            f"opt_state is a {type(opt_state).__name__}; it must be a state of a "
            "transformation, as its init and update return it."
        )
    checkpoint = read_checkpoint(optimizer, key)
    weights = parameter_map(target, mapping, checkpoint, model, ignore)
    names = parameter_names(
        checkpoint, weights, param_names=param_names, model=model, ignore=ignore
    )
    layout = Layout.of(weights, names)
    collected = Collecting(layout, opt_state, adamax=checkpoint.is_adamax)
    problems = [
        *strangers(opt_state),
        *layout.problems,
        *_other_keys(collected.kept, checkpoint, names),
    ]
    schedulers = () if scheduler is None else (scheduler_state(scheduler),)
    plateau = plateau_of(schedulers, checkpoint.groups)
    if plateau.keys() != collected.plateau.keys():
        problems.append(
            "there is a ReduceLROnPlateau on one side alone: pass it as scheduler=..., "
            "and have schedules.reduce_lr_on_plateau in the transformation."
        )
    if scheduler is not None and collected.count is None:
        problems.append("no state counts the updates, and so scheduler cannot go on.")
    if scheduler is None and checkpoint.schedulers:
        problems.append(
            "there is a scheduler beside the optimizer, whose learning rate is to go "
            "on, too. Pass it as a live one, scheduler=..., or the optimizer alone."
        )
    if problems:
        raise ConversionError(problems)
    made: dict[str, Any] = {}
    groups = checkpoint.groups
    if scheduler is not None:
        epoch = (collected.count or 0) // steps_per_epoch
        groups, made["scheduler"] = gone_on(scheduler, groups, epoch, collected.plateau)
    others = checkpoint.kept.keys() - names.values()
    state = {number: checkpoint.kept[number] for number in others}
    state |= {
        names[name]: {key: _tensor(value) for key, value in own.items()}
        for name, own in collected.kept.items()
    }
    return {"optimizer": {"state": state, "param_groups": groups}, **made}


def parameter_map(
    target: Any,
    mapping: WeightMap | None,
    checkpoint: Checkpoint,
    model: Any,
    ignore: Iterable[str],
) -> WeightMap:
    """Return the map of the parameters, under the names that the torch model has."""
    source = checkpoint.model if model is None else model
    if mapping is None:
        # Without a source there is nothing to leave out.
        mapping = mapping_of(target, source, ignore=() if source is None else ignore)
    return mapping.parameters()


def _by_name(checkpoint: Checkpoint, names: Mapping[str, int]) -> Kept:
    """Return what is kept of each parameter that torch has stepped."""
    return {
        name: checkpoint.kept[number]
        for name, number in names.items()
        if number in checkpoint.kept
    }


def trained_params(target: Any) -> Any:
    """Return the parameters of a model, as they are given to optimizers."""
    match target:
        case nnx.Module():
            return nnx.state(target, nnx.Param)
        case (nnx.GraphDef(), nnx.State() as state):
            return nnx.filter_state(state, nnx.Param)
        case (nn.Module(), Mapping() as variables, *_):
            return variables["params"]
        case nnx.State() | {"params": Mapping()}:
            pass
        case _ if is_bare(target):
            return arrays_in(target)
    raise TypeError(
        "target has no values. It must be what from_torch returns: an NNX module, a "
        "pair (graphdef, state), a pair (module, variables), or a tree of arrays."
    )


def _other_keys(
    kept: Kept, checkpoint: Checkpoint, names: Mapping[str, int]
) -> list[str]:
    """Say where torch's optimizer keeps other things than the states hold."""
    problems = []
    for name, own in _by_name(checkpoint, names).items():
        theirs = {key for key, value in own.items() if value is not None}
        ours = {*kept.get(name, theirs)}
        if theirs and ours != theirs:
            problems.append(
                f"torch's optimizer keeps {', '.join(sorted(theirs))} of {name!r}, and "
                f"the states hold {', '.join(sorted(ours))}. Are the options the same?"
            )
    return problems


def _tensor(value: Any) -> "torch.Tensor":
    import torch

    # Numbers are float32 in torch, or what its default is.
    return to_tensor(value) if np.ndim(value) else torch.tensor(float(value))
