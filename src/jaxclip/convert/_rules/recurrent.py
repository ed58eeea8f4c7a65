"""Rules for the recurrent layers of ``jaxclip.models``, and why Flax's have none.

torch adds two biases in every gate, and most of Flax's cells have one. Their sum gives
the same outputs, but it is another parametrization: the two would not come back from
it, and a gradient, a moment of an optimizer or a decayed weight of the sum is none of
theirs. A conversion that is right for values alone is refused; the layers and cells of
``jaxclip.models`` hold both biases under torch's names.
"""

from flax import linen as nn
from flax import nnx

from jaxclip import models
from jaxclip.convert._rules.layouts import SAME
from jaxclip.convert._rules.links import Rule, raw
from jaxclip.models import linen

_RECURRENT = (
    *(nnx.nn.recurrent.RNNCellBase, nnx.RNN, nnx.Bidirectional),
    *(nn.RNNCellBase, nn.RNN, nn.Bidirectional),
)

_ONE_BIAS = (
    *(nnx.SimpleCell, nnx.LSTMCell, nnx.OptimizedLSTMCell),
    *(nn.SimpleCell, nn.LSTMCell, nn.OptimizedLSTMCell, nn.GRUCell),
)


def refusal(module_type: type) -> str | None:
    """Say why a recurrent type has no rule; None for a type that is not recurrent."""
    if not issubclass(module_type, _RECURRENT):
        return None
    reason = ""
    if issubclass(module_type, nnx.GRUCell):
        reason = (
            "It has no bias inside the reset gate, where torch has one, and cannot "
            "hold what torch trained. "
        )
    elif issubclass(module_type, _ONE_BIAS):
        reason = (
            "It has one bias where torch adds two: with their sum the outputs are "
            "equal, but the two do not come back, and neither has its own gradient. "
        )
    return (
        f"{reason}jaxclip.models has RNN, GRU and LSTM, and RNNCell, GRUCell and "
        "LSTMCell, in NNX and in Linen, which hold exactly what torch's hold."
    )


_layer_rule = Rule(
    raw,
    layout=SAME,
    torch=("RNN", "GRU", "LSTM"),
    note="torch's arguments and names; `batch_first` is the default",
)
_cell_rule = Rule(
    raw,
    layout=SAME,
    torch=("RNNCell", "GRUCell", "LSTMCell"),
    note="torch's arguments and names",
)

RULES: dict[type, Rule] = {
    models.RNN: _layer_rule,
    models.GRU: _layer_rule,
    models.LSTM: _layer_rule,
    linen.RNN: _layer_rule,
    linen.GRU: _layer_rule,
    linen.LSTM: _layer_rule,
    models.RNNCell: _cell_rule,
    models.GRUCell: _cell_rule,
    models.LSTMCell: _cell_rule,
    linen.RNNCell: _cell_rule,
    linen.GRUCell: _cell_rule,
    linen.LSTMCell: _cell_rule,
}
