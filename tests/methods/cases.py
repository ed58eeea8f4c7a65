"""The methods that learn, with warm-ups short enough for a test to see their end."""

from jaxclip._methods.adagc import adagc
from jaxclip._methods.autoclip import autoclip
from jaxclip._methods.spam import spam_clip
from jaxclip._methods.zclip import zclip

CASES = {
    "zclip": (zclip, {"warmup_steps": 5, "max_grad_norm": 30.0}),
    "autoclip": (autoclip, {"percentile": 50.0, "window": 6}),
    "autoclip_package": (
        autoclip,
        {"percentile": 75.0, "window": 6, "rule": "package"},
    ),
    "adagc": (adagc, {"warmup_steps": 5}),
    "spam_clip": (spam_clip, {"theta": 9.0, "b2": 0.5, "warmup_steps": 5}),
}
