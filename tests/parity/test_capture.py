"""What modules return is kept, call by call; where nobody can look, that is said."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from jaxclip.parity._verify._port._models import LinenModel, NNXModel, read_model
from jaxclip.parity._verify._random._replay import Replay
from jaxclip.parity._verify._tracing._calls import Inside
from jaxclip.parity._verify._tracing._capture import captured_nnx
from jaxclip.parity._verify._tracing._paths import named, path_of


class Inner(nnx.Linear):
    """A layer that calls that of its base."""

    def __call__(self, inputs):
        return super().__call__(inputs) + 1


class Net(nnx.Module):
    """Layers that are called twice, in a scan, and under two names."""

    def __init__(self, rngs):
        """Make the layers."""
        self.twice = Inner(2, 2, rngs=rngs)
        self.scanned = nnx.Linear(2, 2, rngs=rngs)
        self.embed = nnx.Embed(3, 2, rngs=rngs)
        self.head = self.embed

    def __call__(self, x):
        x = self.twice(self.twice(self.embed(x)))
        x, _ = jax.lax.scan(lambda x, _: (self.scanned(x), None), x, length=3)
        return self.head.attend(x)


def test_calls_are_kept_once_each_and_in_order():
    net = Net(nnx.Rngs(0))
    call = Inner.__call__
    with named(net), captured_nnx(net) as captured:
        output = net(jnp.arange(3))
    calls = captured.calls
    counts = {path: len(outputs) for path, outputs in calls.items()}
    assert counts == {"embed": 2, "twice": 2, "scanned": 1, "": 1}
    assert calls["scanned"] == [Inside()]
    assert [path for path, _ in captured.order] == [
        *("embed", "twice", "twice", "scanned", "embed", "")
    ]
    assert (calls[""][0] == output).all()
    assert not (calls["twice"][0] == calls["twice"][1]).all()
    assert Inner.__call__ is call
    assert path_of(net.twice) is None


def test_a_class_is_as_it_was_after_an_error():
    net = Net(nnx.Rngs(0))
    call = Inner.__call__
    with pytest.raises(TypeError), named(net), captured_nnx(net):
        net()
    assert Inner.__call__ is call
    assert path_of(net.twice) is None


@pytest.mark.parametrize("wide", [False, True])
def test_a_model_that_names_its_dtype_computes_in_float64(wide):
    model = NNXModel(nnx.Embed(3, 2, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    with jax.enable_x64(True):
        dtype = "float64" if wide else "float32"
        variables = jax.tree.map(lambda x: x.astype(dtype), model.variables)
        params, rest = model.split(variables)
        called = model.call(
            lambda m, x: m(x), params, rest, jnp.arange(3), replay=Replay(), wide=wide
        )
    assert called.value.dtype == dtype


def test_a_linen_model_keeps_what_it_changes():
    class Norm(linen.Module):
        @linen.compact
        def __call__(self, x, train):
            return linen.BatchNorm(use_running_average=not train, name="bn")(x)

    x = jnp.asarray([[1.0, 2.0], [3.0, 5.0]])
    variables = Norm().init(jax.random.key(0), x, train=False)
    model = read_model((Norm(), variables))
    assert isinstance(model, LinenModel)
    params, rest = model.split(variables)
    called = model.call(
        lambda m, x: m(x, train=True), params, rest, x, replay=Replay(), wide=False
    )
    assert [*called.calls] == ["bn", ""]
    before, after = (tree["batch_stats"]["bn"]["mean"] for tree in (rest, called.rest))
    assert not (before == after).all()
    with pytest.raises(TypeError, match="Leave mutable out"):
        model.call(
            lambda m, x: m(x, train=True, mutable=["batch_stats"]),
            *(params, rest, x),
            replay=Replay(),
            wide=False,
        )


class Student(linen.Module):
    """A layer that its teacher has, too."""

    @linen.compact
    def __call__(self, x):
        """Map ``(B, 3)`` to ``(B, 2)``."""
        return linen.Dense(2)(x)


def test_another_linen_model_is_not_captured():
    module, x = Student(), jnp.ones((1, 3))
    variables = module.init(jax.random.key(0), x)

    def loss_fn(model, x):
        taught = module.apply(variables, 2 * x)
        return model(x) - taught - module.apply(variables, 3 * x)

    model = LinenModel(module, variables)
    params, rest = model.split(variables)
    called = model.call(loss_fn, params, rest, x, replay=Replay(), wide=False)
    assert {path: len(calls) for path, calls in called.calls.items()} == {
        "Dense_0": 1,
        "": 1,
    }
    np.testing.assert_array_equal(called.calls[""][0], module.apply(variables, x))
