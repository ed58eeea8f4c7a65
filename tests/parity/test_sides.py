"""What verify holds of a step at a time, and what it keeps of the rest."""

import weakref

import jax
import numpy as np
import pytest

from jaxclip.parity import open_trace, verify
from jaxclip.parity._trace._digest import digest
from jaxclip.parity._verify._alignment._alignment import Alignment
from jaxclip.parity._verify._compute._bench import Bench
from jaxclip.parity._verify._compute._errors import Error, errors_of
from jaxclip.parity._verify._compute._runs import Precision, Runs
from jaxclip.parity._verify._port._models import read_model
from tests.parity.recordings import port_of, recorded
from tests.trios import BY_NAME

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A recorded run, and its port."""
    trio = BY_NAME["my_linear"]
    path = recorded(tmp_path_factory.mktemp("sides") / "run.trace", trio, steps=2)
    return path, port_of(trio, "nnx", "adamw")


def test_no_more_than_one_draw_and_one_part_are_held(run, monkeypatch):
    held: list[weakref.ref] = []
    most = {"called": 0, "stepped": 0}

    def counting(name):
        compute = getattr(Bench, name)

        def computed(*args):
            made = compute(*args)
            held.append(weakref.ref(made))
            alive = sum(ref() is not None for ref in held)
            most[name] = max(most[name], alive)
            return made

        return computed

    for name in most:
        monkeypatch.setattr(Bench, name, counting(name))
    path, port = run
    assert verify(path, port, draws=5, free_run=False)
    assert len(held) == 2 * 2 * (2 + 5)
    # In the recorded dtype, in float64, and in one draw of the five.
    assert most == {"called": 3, "stepped": 3}


def test_an_error_is_measured_where_float64_is_finite():
    wide = np.asarray([1.0, 2.0, np.nan, np.inf, 5.0])
    narrow = np.asarray([1.0, 2.5, 7.0, 8.0, 4.0], "f")
    error = Error.of(narrow, wide)
    assert error.peak == 1.0
    assert error.norm == pytest.approx(np.sqrt(1.25), rel=1e-15)
    assert error.sketch is None
    assert Error.of(np.zeros(0, "f"), np.zeros(0)) == Error(0.0, 0.0)
    assert Error.of(np.float32(3), np.float64(1)).norm == 2.0
    assert np.isnan(Error.of(np.asarray([np.nan], "f"), np.ones(1)).norm)


def test_a_sketch_is_what_a_digest_tells_of_the_error():
    rng = np.random.default_rng(0)
    wide = rng.normal(size=(40, 50))
    narrow = (wide + 1e-3 * rng.normal(size=wide.shape)).astype("f")
    sketch = Error.of(narrow, wide, sketched=True).sketch
    apart = digest(narrow.astype("f8") - wide)
    np.testing.assert_array_equal(sketch.projections, apart.projections)
    assert np.linalg.norm(sketch.blocks) == pytest.approx(apart.l2, rel=1e-12)


def test_errors_are_taken_of_what_both_runs_have():
    ones, twos = np.ones(3, "f"), np.full(3, 2.0)
    found = errors_of({"a": ones, "b": ones}, {"b": twos, "c": twos}, ["b"])
    assert [*found] == ["b"]
    assert found["b"].peak == 1.0
    assert found["b"].sketch is not None


def is_empty(leaf):
    return isinstance(leaf, np.ndarray) and leaf.size > 1 and not any(leaf.strides)


@pytest.mark.parametrize("lacking", [(), ("fc.weight",), None])
def test_gradients_that_the_recording_has_take_no_memory(run, lacking):
    path, port = run
    step = open_trace(path)[0]
    if lacking is None:
        lacking = (*step.grads,)
    assert {*lacking} <= {*step.grads}
    model = read_model(port.model)
    alignment = Alignment(model, port, open_trace(path).run, step)
    bench = Bench(model, alignment, Runs(model, port, alignment.dropouts), True)
    grads = bench.called(step, Precision(False)).grads
    params, _ = model.split(alignment.variables(step, lambda array: array))
    tree = alignment.replaced(params, grads, lambda array: array)

    left = alignment.without(tree, {*step.grads} - {*lacking})

    found = alignment.params(left)
    for name, array in found.items():
        assert array.any() == (name in lacking), name
    empty = [leaf for leaf in jax.tree.leaves(left) if is_empty(leaf)]
    assert len(jax.tree.leaves(left)) - len(empty) == len(lacking)
    # The gap is filled again, and what is left stays.
    whole = alignment.replaced(left, step.grads, lambda array: array)
    for name, array in alignment.params(whole).items():
        np.testing.assert_array_equal(array, step.grads[name])
