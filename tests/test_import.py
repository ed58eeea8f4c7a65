"""`import jaxclip` is light, and the list of its names is frozen."""

import subprocess
import sys

import pytest

import jaxclip

HEAVY = ("flax", "matplotlib", "rich", "safetensors", "torch", "torchref")

ROOT_NAMES = [
    "AdaGCState",
    "AutoClipState",
    "ClipMetrics",
    "ClipState",
    "GroupClipState",
    "PerExampleReport",
    "PerExampleState",
    "SkipNonfiniteState",
    "SkipSpikesState",
    "SpamClipState",
    "ZClipState",
    "adagc",
    "adaptive_grad_clip",
    "autoclip",
    "by_path",
    "clip_by_block_rms",
    "clip_by_global_norm",
    "clip_by_group_norm",
    "clip_by_norm",
    "clip_by_update_rms",
    "clip_by_value",
    "clip_grad_norm",
    "clip_grad_value",
    "clip_grads_with_norm",
    "clip_metrics",
    "clip_per_example_grads",
    "clippy",
    "global_norm",
    "per_example_clip",
    "plot_clipping",
    "skip_nonfinite",
    "skip_spikes",
    "spam_clip",
    "zclip",
]


def heavy_modules_after(code: str) -> set[str]:
    """Run code in a fresh interpreter; return the heavy packages it imported."""
    report = f"import sys; print(*(set(sys.modules) & set({HEAVY!r})))"
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(run.stdout.split())


def test_import_jaxclip_brings_in_the_core_alone() -> None:
    assert heavy_modules_after("import jaxclip") == set()


@pytest.mark.parametrize(
    "code", ["import jaxclip, torch", "import jaxclip.models", "import torchref.rnn"]
)
def test_the_check_above_can_fail(code: str) -> None:
    assert heavy_modules_after(code) & {"torch", "flax"}


@pytest.mark.parametrize("room", ["models", "models.linen", "convert", "parity", "cli"])
def test_no_room_brings_in_torch(room: str) -> None:
    assert "torch" not in heavy_modules_after(f"import jaxclip.{room}")


def test_the_root_names_are_these() -> None:
    public = [name for name in vars(jaxclip) if not name.startswith("_")]
    rooms = ["cli", "convert", "demo", "models", "optim", "parity"]
    assert sorted(set(public) - set(rooms)) == ROOT_NAMES


@pytest.mark.parametrize("name", ROOT_NAMES)
def test_every_root_name_is_documented_with_an_example(name: str) -> None:
    doc = getattr(jaxclip, name).__doc__ or ""
    if name[0].isupper():
        assert "Attributes:" in doc
    else:
        sections = ("Args:", "Returns:", "Raises:", "Example:")
        assert [s for s in sections if s not in doc] == []
