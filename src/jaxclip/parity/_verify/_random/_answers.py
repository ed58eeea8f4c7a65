"""What torch drew, for a port that asks for it inside of a scan.

While the port is traced, the body of a scan is seen once. Which layer it is of, or
which call, is known afterwards: then all iterations are answered.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp

from jaxclip.convert._modules import in_layers, starred, stars
from jaxclip.parity._verify._random._replay import Replay
from jaxclip.parity._verify._tracing._calls import around
from jaxclip.parity._verify._tracing._inside import Question, Turns, places

Asked = tuple[Question, tuple[Turns, ...]]
"""A question, and the iterations of each scan that it is in, the outermost first."""


def answers(
    replay: Replay, asked: Iterable[Asked], unseen: Iterable[Question]
) -> dict[Question, Any]:
    """Return what torch drew in all iterations of scans.

    Args:
        replay: Gives it out, and keeps what there is to say.
        asked: What is asked for, in order.
        unseen: What is asked for where nobody can look.

    Returns:
        Arrays with an axis in front for each scan, of what has an answer.
    """
    asked = [*asked]
    times = Counter(question for question, _ in asked)
    found = {}
    for question, turns in asked:
        # One that a compiled function asks, which is called several times, is several.
        drawn = _drawn(replay, question, turns) if times[question] == 1 else {}
        if not drawn:
            replay.say_unknown(question)
        elif not any(each is None for each in drawn.values()):
            stacked = jnp.stack([jnp.asarray(drawn[place]) for place in sorted(drawn)])
            lengths = (each.length for each in turns)
            found[question] = stacked.reshape(*lengths, *question.shape)
    for question in unseen:
        replay.say_unknown(question)
    return found


def _drawn(
    replay: Replay, question: Question, turns: tuple[Turns, ...]
) -> dict[tuple[int, ...], Any]:
    """Return by the iteration what torch drew; nothing if it is not known which is."""
    path, shape, layout = question.path, question.shape, question.layout
    found: dict[tuple[int, ...], Any] = {}
    if question.kind == "dropout":
        within = around(path, replay.stacks)
        counts = [replay.stacks[stack] for stack in within]
        for layer, own in places(turns, counts).items():
            name = in_layers(path, dict(zip(within, layer, strict=True)))
            found |= {place: replay.of_flax(name, shape) for place in own}
        return found
    ask = replay.of_torch if question.kind == "replayed_mask" else replay.draw_of
    counts = _counts(replay, path)
    if len(counts) < path.count("*"):  # torch drew nothing in any such module
        return {(): ask(path, shape, layout)}
    for layer, own in places(turns, counts).items():
        name = starred(path, layer)
        found |= {place: ask(name, shape, layout) for place in own}
    return found


def _counts(replay: Replay, path: str) -> list[int]:
    """Return of each ``*`` in the path of a torch module how many layers it has."""
    calls = *replay.drawn.masks, *replay.drawn.draws
    numbers = [n for call in calls if (n := stars(path, call.module)) is not None]
    return [max(each) + 1 for each in zip(*numbers, strict=True)]
