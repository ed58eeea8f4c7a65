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
from jaxclip._core.paths import by_path as by_path
from jaxclip._guards import SkipNonfiniteState as SkipNonfiniteState
from jaxclip._guards import skip_nonfinite as skip_nonfinite
from jaxclip._methods.adagc import AdaGCState as AdaGCState
from jaxclip._methods.adagc import adagc as adagc
from jaxclip._methods.agc import adaptive_grad_clip as adaptive_grad_clip
from jaxclip._methods.autoclip import AutoClipState as AutoClipState
from jaxclip._methods.autoclip import autoclip as autoclip
from jaxclip._methods.clippy import clippy as clippy
from jaxclip._methods.group_norm import GroupClipState as GroupClipState
from jaxclip._methods.group_norm import clip_by_group_norm as clip_by_group_norm
from jaxclip._methods.per_example import PerExampleReport as PerExampleReport
from jaxclip._methods.per_example import PerExampleState as PerExampleState
from jaxclip._methods.per_example import (
    clip_per_example_grads as clip_per_example_grads,
)
from jaxclip._methods.per_example import per_example_clip as per_example_clip
from jaxclip._methods.rms import clip_by_block_rms as clip_by_block_rms
from jaxclip._methods.rms import clip_by_update_rms as clip_by_update_rms
from jaxclip._methods.spam import SpamClipState as SpamClipState
from jaxclip._methods.spam import spam_clip as spam_clip
from jaxclip._methods.zclip import ZClipState as ZClipState
from jaxclip._methods.zclip import zclip as zclip
from jaxclip._monitoring import ClipMetrics as ClipMetrics
from jaxclip._monitoring import ClipState as ClipState
from jaxclip._monitoring import clip_metrics as clip_metrics
from jaxclip._norms import global_norm as global_norm
from jaxclip._plotting import plot_clipping as plot_clipping
from jaxclip._spikes import SkipSpikesState as SkipSpikesState
from jaxclip._spikes import skip_spikes as skip_spikes

__version__ = _version("jaxclip")
