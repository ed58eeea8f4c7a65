"""Find the rule for a type of Flax module.

A rule is chosen by the type of a module alone, never by the name or the number of
axes of an array: a square kernel looks the same either way round. A type that Flax
defines and that has no rule here is refused.
"""

from flax import linen as nn
from flax import nnx

from jaxclip.convert._rules import containers, dense
from jaxclip.convert._rules.links import Rule

RULES: dict[type, Rule] = {**containers.RULES, **dense.RULES}
"""The rule for each type, and for the types that users derive from it."""

_RECURRENT = (
    *(nnx.nn.recurrent.RNNCellBase, nnx.RNN, nnx.Bidirectional),
    *(nn.RNNCellBase, nn.RNN, nn.Bidirectional),
)


def find_rule(module_type: type) -> Rule | None:
    """Return the rule of the nearest ancestor that has one or that is Flax's own.

    A class that a user derives from ``nnx.Linear`` is laid out as that is; a class
    that Flax derives from it may not be.
    """
    for ancestor in module_type.__mro__:
        if ancestor in RULES or is_flax(ancestor):
            return RULES.get(ancestor)
    return None


def is_flax(module_type: type) -> bool:
    """Say whether a type comes with Flax."""
    # nn.scan, nn.remat and the like derive classes from users' own in there.
    if module_type.__module__ == "flax.linen.transforms":
        return False
    return module_type.__module__.partition(".")[0] == "flax"


def no_rule(module_type: type) -> str:
    """Say that there is no rule for a type, and what to use in its place."""
    hint = (
        "jaxclip.models has RNN, GRU and LSTM, in NNX and in Linen, which hold "
        "exactly what torch's hold."
        if issubclass(module_type, _RECURRENT)
        else "Which way round its arrays lie in torch is not known here, and is not "
        "guessed."
    )
    return f"{module_type.__module__}.{module_type.__qualname__} has no rule. {hint}"
