"""CREPE, a convolutional pitch tracker with batch normalisation, from torchcrepe."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from jaxclip import models
from jaxclip.convert import ConversionError, from_torch
from tests.real.harness import (
    assert_quoted,
    both,
    check_port,
    differences,
    folder_of,
    module_of,
)

pytestmark = pytest.mark.long

RATE, FRAME, PITCHES = 16_000, 1024, 360
WIDTHS = {
    "tiny": (128, 16, 16, 16, 32, 64),
    "full": (1024, 128, 128, 128, 256, 512),
}


class Crepe(nnx.Module):
    """The counterpart of ``torchcrepe.Crepe``, channels last."""

    def __init__(self, capacity, *, rngs, param_dtype=jnp.float32):
        """Make the layers."""
        options = {"rngs": rngs, "param_dtype": param_dtype}
        widths = WIDTHS[capacity]
        for layer, sizes in enumerate(zip((1, *widths), widths, strict=False), 1):
            window, stride, padding = (64, 1, (31, 32))
            if layer == 1:
                window, stride, padding = (512, 4, (254, 254))
            conv = nnx.Conv(
                *sizes,
                kernel_size=(window, 1),
                strides=(stride, 1),
                padding=(padding, (0, 0)),
                **options,
            )
            norm = models.BatchNorm(
                sizes[1], epsilon=0.0010000000474974513, momentum=0.0, **options
            )
            setattr(self, f"conv{layer}", conv)
            setattr(self, f"conv{layer}_BN", norm)
        self.classifier = nnx.Linear(4 * widths[-1], PITCHES, **options)

    def __call__(self, frames):
        x = frames[:, :, None, None]  # (B, 1024, 1, 1)
        for layer in range(1, 7):
            x = jax.nn.relu(getattr(self, f"conv{layer}")(x))
            x = getattr(self, f"conv{layer}_BN")(x)
            x = nnx.max_pool(x, (2, 1), strides=(2, 1))
        # (B, 4, 1, C): torch's code brings its channels last, too, before it flattens.
        return jax.nn.sigmoid(self.classifier(x.reshape(len(x), -1)))


@pytest.fixture
def folder():
    return folder_of("torchcrepe", "torchcrepe")


def port(folder, capacity, *, training=False):
    """Return the package's own network, what makes its port, and the weights."""
    path = folder / "assets" / f"{capacity}.pth"
    source = module_of(folder, "torchcrepe.model", PITCH_BINS=PITCHES).Crepe(capacity)
    source.load_state_dict(torch.load(path))

    def make(**options):
        return Crepe(capacity, rngs=nnx.Rngs(0), **options)

    return source.train(training), make, path


def tones():
    """Return frames of four harmonic sounds with a little noise, and their pitches."""
    pitches = np.array([110.0, 220.0, 440.0, 660.0])
    phases = 2 * np.pi * pitches[:, None] * np.arange(FRAME) / RATE
    frames = sum(np.sin(n * phases + n) / n for n in (1, 2, 3, 4))
    frames += 0.05 * np.random.default_rng(0).normal(size=frames.shape)
    # As torchcrepe prepares them.
    frames -= frames.mean(axis=1, keepdims=True)
    return frames / frames.std(axis=1, keepdims=True), pitches


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("capacity", WIDTHS)
def test_it_computes_what_torchs_does(folder, capacity, training):
    check_port(*port(folder, capacity, training=training), tones()[0])


def test_it_hears_the_pitch(folder):
    frames, pitches = tones()
    _, ours = both("float32", *port(folder, "full"), frames)
    # Bins are 20 cents apart.
    cents = 20 * ours["output"].argmax(axis=1) + 1997.3794084376191
    np.testing.assert_allclose(10 * 2 ** (cents / 1200), pitches, rtol=0.006)


def with_torchs_default_epsilon(model):
    for layer in range(1, 7):
        getattr(model, f"conv{layer}_BN").epsilon = 1e-5


def with_padding_the_other_way_round(model):
    for layer in range(2, 7):
        getattr(model, f"conv{layer}").padding = ((32, 31), (0, 0))


WRONG = {
    "epsilon": ({"change": with_torchs_default_epsilon}, 1e-6),
    "padding": ({"change": with_padding_the_other_way_round}, 0.1),
    # What a Linear after a flatten of channels first would need.
    "flatten": ({"flatten": {"classifier": (64, 4, 1)}}, 0.1),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_port_is_far_off(folder, name):
    options, least = WRONG[name]
    theirs, ours = both("float64", *port(folder, "tiny"), tones()[0], **options)
    assert differences(ours, theirs)["output"] > least


class InOneDimension(Crepe):
    """Convolutions along time alone, and Flax's own normalisation."""

    def __init__(self, capacity, *, rngs):
        """Make the layers."""
        super().__init__(capacity, rngs=rngs)
        widths = WIDTHS[capacity]
        for layer, sizes in enumerate(zip((1, *widths), widths, strict=False), 1):
            conv = nnx.Conv(*sizes, (64 if layer > 1 else 512,), rngs=rngs)
            setattr(self, f"conv{layer}", conv)
            setattr(self, f"conv{layer}_BN", nnx.BatchNorm(sizes[1], rngs=rngs))


def test_the_errors_that_the_diary_quotes(folder):
    path = folder / "assets" / "tiny.pth"
    with pytest.raises(ConversionError) as caught:
        from_torch(lambda: InOneDimension("tiny", rngs=nnx.Rngs(0)), path)
    assert_quoted(*str(caught.value).splitlines()[:3])
