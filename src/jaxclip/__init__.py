"""Port PyTorch training to JAX, and prove that it trains the same.

Here is gradient clipping for Optax chains, and as functions under torch's names;
importing it brings in jax, optax and numpy alone. `jaxclip.models` holds Flax models,
`jaxclip.convert` takes weights from torch to Flax and back.
"""

from importlib.metadata import version as _version

from jaxclip._clip_grad import clip_grad_norm as clip_grad_norm
from jaxclip._clip_grad import clip_grad_value as clip_grad_value
from jaxclip._clip_grad import clip_grads_with_norm as clip_grads_with_norm
from jaxclip._clipping import clip_by_global_norm as clip_by_global_norm
from jaxclip._clipping import clip_by_norm as clip_by_norm
from jaxclip._clipping import clip_by_value as clip_by_value
from jaxclip._monitoring import ClipMetrics as ClipMetrics
from jaxclip._monitoring import ClipState as ClipState
from jaxclip._monitoring import clip_metrics as clip_metrics
from jaxclip._norms import global_norm as global_norm

__version__ = _version("jaxclip")
