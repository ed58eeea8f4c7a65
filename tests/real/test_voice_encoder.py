"""A voice encoder of three LSTM layers, from Resemblyzer."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from jaxclip import models
from jaxclip.convert import ConversionError, from_torch, mapping, opt_state_from_torch
from tests.real.harness import (
    assert_quoted,
    both,
    check_port,
    cotangent,
    differences,
    folder_of,
    module_of,
)

pytestmark = pytest.mark.long

BANDS, WIDTH, LAYERS = 40, 256, 3

# What the net was trained with, beside itself.
IGNORE = "similarity_*"


class VoiceEncoder(nnx.Module):
    """The counterpart of ``resemblyzer.VoiceEncoder``."""

    def __init__(self, *, rngs, param_dtype=jnp.float32):
        """Make the layers."""
        options = {"rngs": rngs, "param_dtype": param_dtype}
        self.lstm = models.LSTM(BANDS, WIDTH, LAYERS, **options)
        self.linear = nnx.Linear(WIDTH, WIDTH, **options)

    def __call__(self, mels):
        _, (hidden, _) = self.lstm(mels)
        embedding = jax.nn.relu(self.linear(hidden[-1]))
        return embedding / jnp.linalg.norm(embedding, axis=1, keepdims=True)


def make(**options):
    return VoiceEncoder(rngs=nnx.Rngs(0), **options)


@pytest.fixture
def port():
    """Return the package's own network, what makes its port, and the weights."""
    folder = folder_of("resemblyzer", "Resemblyzer")
    # It asks for the package's functions on audio, and calls none of them.
    network = module_of(folder, "resemblyzer.voice_encoder", audio=None)
    source = network.VoiceEncoder("cpu", verbose=False)
    return source.eval(), make, folder / "pretrained.pt"


def spectra():
    """Return frames as sparse and positive as those of voices are."""
    return np.random.default_rng(0).gamma(0.1, size=(3, 160, BANDS))


def test_it_computes_what_torchs_does(port):
    check_port(*port, spectra(), ignore=IGNORE)


def with_two_layers_swapped(model):
    names = [name for name in vars(model.lstm) if name.endswith("_l1")]
    assert len(names) == 4
    for name in names:
        lower, upper = (getattr(model.lstm, name[:-1] + layer) for layer in "12")
        lower[...], upper[...] = upper[...], lower[...]


def test_a_wrong_port_is_far_off(port):
    options = {"change": with_two_layers_swapped, "ignore": IGNORE}
    theirs, ours = both("float64", *port, spectra(), **options)
    assert differences(ours, theirs)["output"] > 0.1


def test_the_error_that_the_diary_quotes(port):
    _, make, path = port
    with pytest.raises(ConversionError) as caught:
        from_torch(make, path)
    assert_quoted(*str(caught.value).splitlines())


def test_its_training_goes_on_with_the_moments_in_the_checkpoint(port):
    source, make, path = port
    source = source.double()
    checkpoint = torch.load(path, map_location="cpu")
    saved = checkpoint["optimizer_state"]
    (group,) = saved["param_groups"]
    # The two parameters that the package leaves out come first.
    left_out = [torch.zeros(1, requires_grad=True) for _ in range(2)]
    adam = torch.optim.Adam([*left_out, *source.parameters()])
    adam.load_state_dict(saved)
    before = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    output = source(torch.tensor(spectra()))
    output.backward(torch.tensor(cotangent(output)))
    adam.step()
    theirs = {n: (t - before[n]).numpy() for n, t in source.state_dict().items()}

    with jax.enable_x64(True):
        target = partial(make, param_dtype="float64")
        model = from_torch(target, path, ignore=IGNORE, dtype="float64")
        weights = mapping(target, path, ignore=IGNORE)
        optimizer = optax.adam(group["lr"])
        state = opt_state_from_torch(path, model, optimizer, ignore=IGNORE)

        @nnx.grad
        def gradients(model):
            output = model(spectra())
            return jnp.sum(output * cotangent(output))

        updates, _ = optimizer.update(gradients(model), state)
        ours = {name: t.numpy() for name, t in weights.to_torch(updates).items()}

    errors = differences(ours, theirs)
    # torch's are differences of weights, which are ten thousand times as large.
    assert max(errors.values()) < 1e-10, errors
