"""What torch drew, for a port that asks for it inside of a transformation.

While the port is traced, the body of a scan is seen once, and what is mapped as if for
one. Which layer it is of, or which call, is known afterwards: then all are answered.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp

from jaxclip.convert._modules import in_layers, starred, stars
from jaxclip.parity._verify._random._replay import Replay
from jaxclip.parity._verify._tracing._calls import around
from jaxclip.parity._verify._tracing._inside import Axes, Maps, Place, Question, places
from jaxclip.parity._verify._tracing._survey import Asked


def answers(
    replay: Replay, asked: Iterable[Asked], unseen: Iterable[Question]
) -> dict[Question, Any]:
    """Return what torch drew in all iterations of scans, for all that are mapped over.

    Args:
        replay: Gives it out, and keeps what there is to say.
        asked: What is asked for, in order.
        unseen: What is asked for where nobody can look.

    Returns:
        Arrays with an axis in front for each scan and map, of what has an answer.
    """
    asked = [*asked]
    times = Counter(question for question, *_ in asked)
    found = {}
    for question, path, axes in asked:
        # One that a compiled function asks, which is called several times, is several.
        once = times[question] == 1
        drawn = _drawn(replay, question, path, axes) if once else {}
        if not drawn:
            replay.say_unknown(question)
        elif not any(each is None for each in drawn.values()):
            found[question] = _joined(drawn, axes)
    for question in unseen:
        replay.say_unknown(question)
    return found


def _drawn(
    replay: Replay, question: Question, path: str, axes: Axes
) -> dict[Place, Any]:
    """Return by the place what torch drew; nothing if it is not known which is."""
    if question.kind == "dropout":
        within = around(path, replay.stacks)
        counts = [replay.stacks[stack] for stack in within]

        def name_of(layer: tuple[int, ...]) -> str:
            return in_layers(path, dict(zip(within, layer, strict=True)))
    else:
        counts = _counts(replay, path)
        if len(counts) < path.count("*"):  # torch drew nothing in any such module
            return {(): _asked(replay, question, path, ())}

        def name_of(layer: tuple[int, ...]) -> str:
            return starred(path, layer)

    return {
        place: _asked(replay, question, name_of(layer), _left(axes, place))
        for layer, own in places(axes, counts).items()
        for place in own
    }


def _asked(replay: Replay, question: Question, name: str, mapped: Maps) -> Any:
    """Return what torch drew in a module, or None."""
    shape = *mapped, *question.shape
    match question.kind:
        case "dropout":
            return replay.of_flax(name, shape)
        case "replayed_mask":
            return replay.of_torch(name, shape, question.layout)
    return replay.draw_of(name, shape, question.layout)


def _left(axes: Axes, place: Place) -> Maps:
    """Return the axes that a draw has in one place."""
    return tuple(
        length for length, n in zip(axes.lengths, place, strict=True) if n is None
    )


def _joined(drawn: dict[Place, Any], axes: Axes) -> Any:
    """Put the draws of all places together in one array."""
    lengths = axes.lengths
    whole = [axis for axis, n in enumerate(next(iter(drawn))) if n is None]
    apart = [axis for axis in range(len(lengths)) if axis not in whole]
    ordered = sorted(drawn, key=lambda place: [place[axis] for axis in apart])
    stacked = jnp.stack([jnp.asarray(drawn[place]) for place in ordered])
    split = stacked.reshape(*(lengths[axis] for axis in apart), *stacked.shape[1:])
    # As they are in `axes`.
    return jnp.moveaxis(split, range(len(lengths)), [*apart, *whole])


def _counts(replay: Replay, path: str) -> list[int]:
    """Return of each ``*`` in the path of a torch module how many layers it has."""
    calls = *replay.drawn.masks, *replay.drawn.draws
    numbers = [n for call in calls if (n := stars(path, call.module)) is not None]
    return [max(each) + 1 for each in zip(*numbers, strict=True)]
