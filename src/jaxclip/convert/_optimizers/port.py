"""The public function: a torch optimizer as the Optax code that does the same."""

from collections.abc import Iterable
from typing import Any

import optax

from jaxclip._core.paths import by_path
from jaxclip.convert._errors import ConversionError
from jaxclip.convert._map.weight_map import WeightMap
from jaxclip.convert._optimizers.checkpoint import read_checkpoint
from jaxclip.convert._optimizers.choices import Choice, choose
from jaxclip.convert._optimizers.expressions import (
    Call,
    Named,
    code_of,
    value_of,
    within,
)
from jaxclip.convert._optimizers.options import refuse_unknown, step_call
from jaxclip.convert._optimizers.parameters import ParamNames, parameter_names
from jaxclip.convert._optimizers.places import Place, places_of
from jaxclip.convert._optimizers.schedulers import plateau_call
from jaxclip.convert._optimizers.state import parameter_map

_IMPORTS = {
    "jaxclip": "import jaxclip",
    "optax": "import optax",
    "optim": "from jaxclip import optim",
    "schedules": "from jaxclip.optim import schedules",
}
"""What the code imports for each of the names that calls start with."""


class PortedOptimizer(optax.GradientTransformationExtraArgs):  # type: ignore[misc]
    """An Optax transformation that prints as the code that makes it.

    Attributes:
        code: The code.
    """

    code: str

    # Where users import it from, which is what they should see.
    __module__ = "jaxclip.convert"

    def __str__(self) -> str:
        """Return the code."""
        return self.code


def optimizer_from_torch(
    optimizer: Any,
    target: Any,
    *,
    scheduler: Any = None,
    clip: optax.GradientTransformation | None = None,
    mapping: WeightMap | None = None,
    param_names: ParamNames | None = None,
    model: Any = None,
    ignore: Iterable[str] = (),
    steps_per_epoch: int = 1,
) -> PortedOptimizer:
    """Return the Optax transformation that does what a torch optimizer does.

    Printed, it is the code of ``jaxclip.optim`` and Optax that makes it, to be kept in
    the place of the torch optimizer's. Parameter groups are parts of an
    ``optax.partition``, by the paths of parameters. The clip is outside of them, as
    ``clip_grad_norm_`` is in torch, and sees none of the parameters that are frozen:
    those that the optimizer does not have, or that need no gradient.

    A schedule begins where torch's scheduler did. How far it is lies in the state,
    where ``opt_state_from_torch`` puts it. For a ReduceLROnPlateau, whose present
    learning rate is the one to reduce, ``update`` takes ``value=``.

    Args:
        optimizer: One of torch.optim, other than ``SparseAdam``.
        target: The Flax model, as ``from_torch`` returns it.
        scheduler: One of torch.optim.lr_scheduler that the optimizer has.
        clip: A transformation of the gradients, to go first. The code has it under
            the name ``clip``.
        mapping: As ``opt_state_from_torch`` takes it.
        param_names: The same.
        model: The same. Neither is needed for an optimizer of one group that has all
            of the target's parameters.
        ignore: The same.
        steps_per_epoch: Updates for each step of the scheduler.

    Returns:
        The transformation.

    Raises:
        ConversionError: If anything has no counterpart: one error for all of it.
        TypeError: If an argument is of another type.

    Example:
        >>> import torch
        >>> from flax import nnx
        >>> from jaxclip import clip_by_global_norm
        >>> layer = torch.nn.Linear(3, 1)
        >>> groups = [
        ...     {"params": [layer.weight], "name": "decay"},
        ...     {"params": [layer.bias], "name": "no_decay", "weight_decay": 0.0},
        ... ]
        >>> optimizer = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95))
        >>> scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 30)
        >>> print(
        ...     optimizer_from_torch(
        ...         optimizer,
        ...         nnx.Linear(3, 1, rngs=nnx.Rngs(0)),
        ...         scheduler=scheduler,
        ...         clip=clip_by_global_norm(1.0),
        ...         model=layer,
        ...     )
        ... )
        import jaxclip
        import optax
        from jaxclip import optim
        from jaxclip.optim import schedules
        <BLANKLINE>
        <BLANKLINE>
        def group(path):
            if path == "bias/value":
                return "no_decay"
            return "decay"
        <BLANKLINE>
        <BLANKLINE>
        # clip is the transformation that was given.
        optimizer = optax.chain(
            clip,
            optax.partition(
                {
                    "decay": optim.adamw(
                        lr=schedules.step_lr(0.01, step_size=30), betas=(0.9, 0.95)
                    ),
                    "no_decay": optim.adamw(
                        lr=schedules.step_lr(0.01, step_size=30),
                        betas=(0.9, 0.95),
                        weight_decay=0.0,
                    ),
                },
                jaxclip.by_path(group),
            ),
        )
    """
    refuse_unknown(optimizer, scheduler)
    checkpoint = read_checkpoint(optimizer)
    weights = parameter_map(target, mapping, checkpoint, model, ignore)
    tensors = (t for group in optimizer.param_groups for t in group["params"])
    all_trained = all(tensor.requires_grad for tensor in tensors)
    names = parameter_names(
        checkpoint,
        weights,
        param_names=param_names,
        model=model,
        ignore=ignore,
        any_order=all_trained,
    )
    places, problems = places_of(target, weights, names, optimizer)
    groups: dict[str, Call] = {}
    for index, label in enumerate(_labels(optimizer)):
        try:
            groups[label] = step_call(
                optimizer, index, scheduler, places, steps_per_epoch
            )
        except ConversionError as error:
            problems += error.problems
    try:
        plateau = plateau_call(optimizer, scheduler, steps_per_epoch)
    except ConversionError as error:
        problems += error.problems
    if problems:
        raise ConversionError(dict.fromkeys(problems))
    return _ported(_assembled(groups, places, clip, plateau))


def _labels(optimizer: Any) -> list[str]:
    """Return a name for each group: its own, if all have one."""
    names = [group.get("name") for group in optimizer.param_groups]
    if all(isinstance(name, str) for name in names) and len({*names}) == len(names):
        return [str(name) for name in names]
    return [f"group_{index}" for index in range(len(names))]


def _assembled(
    groups: dict[str, Call],
    places: dict[str, Place],
    clip: optax.GradientTransformation | None,
    plateau: Call | None,
) -> Call:
    """Put all the parts together, in torch's order."""
    labels = list(groups)
    # In the order of the groups, of which the first is the default among equals.
    trained = {
        path: label
        for index, label in enumerate(labels)
        for path, place in places.items()
        if place.group == index
    }
    if len(groups) == 1:
        (whole,) = groups.values()
    else:
        whole = _partition(groups, choose("group", trained))
    links: list[Any] = [] if clip is None else [Named("clip", clip)]
    links += [whole] if plateau is None else [whole, plateau]
    if len(links) > 1:
        whole = Call("optax.chain", optax.chain, tuple(links))
    if len(trained) == len(places):
        return whole
    parts = {p: "trained" if p in trained else "frozen" for p in places}
    zero = Call("optax.set_to_zero", optax.set_to_zero)
    return _partition({"trained": whole, "frozen": zero}, choose("part", parts))


def _partition(parts: dict[str, Call], choice: Choice) -> Call:
    labels = Call("jaxclip.by_path", by_path, (Named(choice.name, choice),))
    return Call("optax.partition", optax.partition, (parts, labels))


def _ported(whole: Call) -> PortedOptimizer:
    made = value_of(whole)
    ported = PortedOptimizer(made.init, optax.with_extra_args_support(made).update)
    parts = list(within(whole))
    rooms = {p.name.partition(".")[0] for p in parts if isinstance(p, Call)}
    given = {p.name: p.value for p in parts if isinstance(p, Named)}
    functions = [value for value in given.values() if isinstance(value, Choice)]
    note = "# clip is the transformation that was given.\n" if "clip" in given else ""
    code = code_of(whole, before=len("optimizer = "))
    ported.code = "\n\n\n".join(
        [
            "\n".join(line for room, line in _IMPORTS.items() if room in rooms),
            *(function.code for function in functions),
            f"{note}optimizer = {code}",
        ]
    )
    if not functions:
        ported.code = ported.code.replace("\n\n\n", "\n\n")
    return ported
