"""Linen modules with compact methods: seen in a call, and converted as any others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn

from jaxclip import optim
from jaxclip.convert import (
    ConversionError,
    Link,
    from_torch,
    mapping,
    opt_state_from_torch,
    register,
    to_torch,
)
from jaxclip.convert._rules import registry

IMAGES = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
INPUTS = IMAGES.transpose(0, 2, 3, 1)


class TorchBlock(torch.nn.Module):
    """Two layers in a list."""

    def __init__(self):
        """Make the layers."""
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(6, 6) for _ in range(2))

    def forward(self, x):
        return self.layers[1](torch.relu(self.layers[0](x)))


class TorchNet(torch.nn.Module):
    """Convolution, normalisation, dropout, two blocks and a head."""

    def __init__(self):
        """Make the layers."""
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 6, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(6)
        self.drop = torch.nn.Dropout(0.5)
        self.block, self.other = TorchBlock(), TorchBlock()
        self.head = torch.nn.Linear(6, 5)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.head(self.other(self.block(self.drop(x))))


class Block(nn.Module):
    """`TorchBlock`, made in setup()."""

    def setup(self):
        self.layers = [nn.Dense(6) for _ in range(2)]

    def __call__(self, x):
        return self.layers[1](nn.relu(self.layers[0](x)))


class Net(nn.Module):
    """`TorchNet`, made in a compact method, some of it without a name."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(6, (3, 3), name="conv")(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x)
        x = nn.relu(x).mean((1, 2))
        x = nn.Dropout(0.5, name="drop")(inputs=x, deterministic=not train)
        x = nn.remat(Block)(name="other")(Block()(x))
        return nn.Dense(5)(x)


RENAME = {"block": "Block_0", "head": "Dense_0"}
IGNORE = ["*num_batches_tracked"]


def variables(module, *args):
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    return module.init(keys, *args)


def source():
    torch.manual_seed(0)
    model = TorchNet()
    model(torch.from_numpy(IMAGES))  # gives the normalisation statistics
    return model.eval()


def call(model):
    """Call a module with an argument by its name, and drawing numbers."""
    return model(INPUTS, train=True)


TARGETS = {
    "module and inputs": lambda: (Net(), (INPUTS, False)),
    "module and shapes": lambda: (
        Net(),
        (jax.ShapeDtypeStruct(INPUTS.shape, np.float32), False),
    ),
    "module and a function": lambda: (Net(), call),
    "with variables": lambda: (Net(), variables(Net(), INPUTS, True), (INPUTS, False)),
    "with variables and a function": lambda: (
        Net(),
        variables(Net(), INPUTS, True),
        call,
    ),
    "with the shapes of variables": lambda: (
        Net(),
        jax.eval_shape(lambda: variables(Net(), INPUTS, True)),
        call,
    ),
    "a function that makes it": lambda: lambda: (Net(), (INPUTS, False)),
}


@pytest.mark.parametrize("form", TARGETS)
def test_a_compact_module_is_filled_and_read(form):
    model = source()
    made = from_torch(TARGETS[form](), model, rename=RENAME, ignore=IGNORE)
    module, filled = made
    outputs = module.apply(filled, INPUTS, False)
    with torch.no_grad():
        expected = model(torch.from_numpy(IMAGES))
    # Sums of float32 in another order; a wrong layout is off by the numbers themselves.
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)

    back = to_torch((module, filled, (INPUTS, False)))
    wanted = {n: t for n, t in model.state_dict().items() if "batches" not in n}
    assert back.keys() == {renamed(name) for name in wanted}
    for name, tensor in wanted.items():
        assert torch.equal(back[renamed(name)], tensor)


def renamed(name):
    first, _, rest = name.partition(".")
    return f"{RENAME.get(first, first)}.{rest}"


def test_the_modules_are_paired_by_what_flax_calls_them():
    pairs = mapping((Net(), (INPUTS, False)), source(), rename=RENAME, ignore=IGNORE)
    found = {pair.torch: (pair.flax, pair.layout) for pair in pairs.modules}
    assert found["conv"] == ("conv", "channels_last_2d")
    assert found["head"] == ("Dense_0", "same")
    assert found["block.layers.1"] == ("Block_0.layers_1", "same")
    assert found["other.layers.0"] == ("other.layers_0", "same")


def test_the_state_of_an_optimizer_goes_there_too():
    model = source().train()
    optimizer = torch.optim.AdamW(model.named_parameters())
    model(torch.from_numpy(IMAGES)).sum().backward()
    optimizer.step()
    module, filled = from_torch((Net(), call), model, rename=RENAME, ignore=IGNORE)
    target = module, filled, call
    weights = mapping(target, model, rename=RENAME, ignore=IGNORE)
    state = opt_state_from_torch(
        optimizer, target, optim.adamw(), model=model, mapping=weights
    )
    kept = optimizer.state[model.head.weight]["exp_avg"]
    np.testing.assert_array_equal(state.exp_avg["Dense_0"]["kernel"], kept.numpy().T)


class Inner(nn.Module):
    """A layer that takes and returns what nn.scan carries."""

    @nn.compact
    def __call__(self, x, _):
        return nn.Dense(4, name="fc")(x), None


class Mixed(nn.Module):
    """What Flax has to put modules into, in a compact method."""

    @nn.compact
    def __call__(self, x):
        x = nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(4)], name="net")(x)
        x = nn.jit(Block)(name="jitted")(jnp.ones((2, 6)) * x.sum())[:, :4]
        scanned = nn.scan(
            Inner, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        x, _ = scanned(name="blocks")(x, None)
        shared = nn.Dense(4, name="shared")
        x = shared(shared(x))
        return nn.MultiHeadDotProductAttention(2, name="attention")(x[None])


def test_what_flax_wraps_and_what_a_rule_speaks_for():
    names = to_torch(
        (Mixed(), variables(Mixed(), jnp.ones((2, 4))), jnp.ones((2, 4))),
        stacked="blocks",
    )
    assert sorted(name for name in names if name.endswith("weight")) == [
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "blocks.0.fc.weight",
        "blocks.1.fc.weight",
        "blocks.2.fc.weight",
        "jitted.layers.0.weight",
        "jitted.layers.1.weight",
        "net.0.weight",
        "net.2.weight",
        "shared.weight",
    ]


class Outer(nn.Module):
    """A compact module in one that is made in setup()."""

    def setup(self):
        self.inside = [Inner(), Inner()]

    def __call__(self, x):
        return self.inside[1](self.inside[0](x, None)[0], None)[0]


def test_a_compact_module_may_be_in_a_list_of_setup():
    inputs = jnp.ones((2, 4))
    assert [*to_torch((Outer(), variables(Outer(), inputs), inputs))] == [
        "inside.0.fc.weight",
        "inside.0.fc.bias",
        "inside.1.fc.weight",
        "inside.1.fc.bias",
    ]


def test_a_rule_may_speak_for_what_a_compact_method_makes(monkeypatch):
    monkeypatch.setattr(registry, "RULES", dict(registry.RULES))

    def links(module, leaves):
        yield Link(
            ("weight",), ("fc.kernel",), lambda w: (w.T,), lambda kernel: (kernel.T,)
        )
        yield Link(("bias",), ("fc.bias",), lambda b: (b,), lambda b: (b,))

    register(Inner, links)
    inputs = jnp.ones((2, 4))
    filled = variables(Inner(), inputs, None)
    for target in ((Inner(), filled), (Inner(), filled, (inputs, None))):
        assert [*to_torch(target)] == ["weight", "bias"]


class Either(nn.Module):
    """A module that calls one of two layers."""

    @nn.compact
    def __call__(self, x, first):
        return nn.Dense(2, name="one" if first else "other")(x)


def test_what_the_call_does_not_reach_is_named():
    inputs = jnp.ones((1, 2))
    both = {
        "params": variables(Either(), inputs, True)["params"]
        | variables(Either(), inputs, False)["params"]
    }
    with pytest.raises(ConversionError) as caught:
        to_torch((Either(), both, (inputs, True)))
    assert caught.value.problems == tuple(
        f"'params.other.{name}' lies in a submodule of Either that cannot be seen, "
        "because it is made in an @nn.compact method. Show how it is called: "
        "target=(module, variables, inputs)."
        for name in ("kernel", "bias")
    )

    def call(model):
        return model(inputs, True), model(inputs, False)

    assert len(to_torch((Either(), both, call))) == 4


def test_what_is_no_call_is_refused():
    inputs = jnp.ones((1, 2))
    with pytest.raises(TypeError, match="variables, inputs"):
        to_torch((Either(), variables(Either(), inputs, True), True))


def test_the_call_changes_nothing_and_draws_nothing():
    filled = variables(Net(), INPUTS, True)
    before = jax.tree.map(np.array, filled)
    to_torch((Net(), filled, call))
    jax.tree.map(np.testing.assert_array_equal, before, filled)
