"""Weights and optimizers between torch and Flax.

``from_torch(target, source)`` returns the target with torch's weights in it;
``to_torch(target)`` returns a state dict that torch loads; ``mapping(target, source)``
is the map between them, which serves gradients, moments and activations, too. How an
array lies in memory follows from the type of the Flax module that holds or returns it,
and nothing is skipped, guessed, or cast unless asked for.

``optimizer_from_torch`` makes the Optax code of an optimizer, with its groups and its
scheduler; ``opt_state_from_torch`` and ``opt_state_to_torch`` carry its state, so that
a run goes on where it stopped.

A new type of layer is one rule in one place: ``register``, whose links ``same``,
``transposed``, ``permuted`` and ``Link`` make.
"""

from jaxclip.convert._convert import from_torch as from_torch
from jaxclip.convert._convert import mapping as mapping
from jaxclip.convert._convert import to_torch as to_torch
from jaxclip.convert._errors import ConversionError as ConversionError
from jaxclip.convert._map.weight_map import WeightMap as WeightMap
from jaxclip.convert._modules import ModulePair as ModulePair
from jaxclip.convert._optimizers.port import PortedOptimizer as PortedOptimizer
from jaxclip.convert._optimizers.port import (
    optimizer_from_torch as optimizer_from_torch,
)
from jaxclip.convert._optimizers.state import (
    opt_state_from_torch as opt_state_from_torch,
)
from jaxclip.convert._optimizers.state import opt_state_to_torch as opt_state_to_torch
from jaxclip.convert._rules.links import Link as Link
from jaxclip.convert._rules.links import permuted as permuted
from jaxclip.convert._rules.links import same as same
from jaxclip.convert._rules.links import transposed as transposed
from jaxclip.convert._rules.registry import register as register
