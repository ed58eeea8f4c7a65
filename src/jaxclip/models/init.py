"""Initialisers by which Flax's own layers start from torch's distributions.

``nnx.Linear(5, 3, rngs=rngs, **init.linear(5))``. The layers of ``jaxclip.models``
start from them by themselves.
"""

from jaxclip.models._init import conv as conv
from jaxclip.models._init import conv_transpose as conv_transpose
from jaxclip.models._init import linear as linear
from jaxclip.models._init import normal as normal
from jaxclip.models._init import uniform as uniform
