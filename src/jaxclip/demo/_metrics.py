"""The numbers behind the picture and the tables, as JSON."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jaxclip._files import write_whole
from jaxclip.demo._history import History
from jaxclip.demo._notebook_net import NetComparison, max_ulps
from jaxclip.demo._proof import Proof
from jaxclip.demo._settings import Settings
from jaxclip.demo._trainings import Trainings


def write_metrics(
    net: NetComparison,
    trainings: Trainings,
    proof: Proof,
    settings: Settings,
    path: Path,
) -> None:
    """Write the verdicts, the clipped gradients and every step of every run.

    JSON has no NaN and no infinity: both are null.

    Args:
        net: The notebook's net.
        trainings: The runs of the language model.
        proof: Whether they are the same in torch and in JAX.
        settings: What was asked for.
        path: The file; it is written whole or not at all.

    Raises:
        OSError: If it cannot be written.
    """
    metrics = {
        "settings": {name: _plain(value) for name, value in asdict(settings).items()},
        "notebook_net": {
            "equal": net.equal,
            "verdict": str(net),
            "total_norm": {"torch": net.torch_norm, "jax": net.jax_norm},
            "ways": [
                {
                    "name": way.name,
                    "formula": way.formula,
                    # A comparison that failed is false, but there is one.
                    "max_ulps": None
                    if way.comparison is None
                    else max_ulps(way.comparison),
                    "gradients": {k: grad.tolist() for k, grad in way.grads.items()},
                }
                for way in net.ways
            ],
        },
        "language_model": {
            "equal": proof.equal,
            "verdict": str(proof),
            "runs": {name: _columns(run) for name, run in trainings.runs.items()},
        },
    }
    text = json.dumps(_finite(metrics), indent=1, allow_nan=False)
    write_whole(path, lambda file: file.write(text.encode()))


def _columns(run: History) -> dict[str, list[float]]:
    return {
        "loss": run.losses.tolist(),
        "grad_norm": run.grad_norms.tolist(),
        "clipped_norm": run.clipped_norms.tolist(),
        "seconds": run.seconds.tolist(),
    }


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _finite(value: Any) -> Any:
    """Return nested dicts and lists with None for every float that is not finite."""
    match value:
        case dict():
            return {key: _finite(item) for key, item in value.items()}
        case list():
            return [_finite(item) for item in value]
        case float():
            return value if math.isfinite(value) else None
    return value
