"""The rule by which a tensor is judged, and what is said of one that fails."""

import numpy as np
import pytest

from jaxclip.parity._verify._compute._errors import Error
from jaxclip.parity._verify._compute._runs import Precision, nested_batch
from jaxclip.parity._verify._judge._hints import hint
from jaxclip.parity._verify._judge._judging import judged
from jaxclip.parity._verify._judge._norms import inaccuracy
from jaxclip.parity._verify._judge._rules import Rule
from jaxclip.parity._verify._judge._samples import Sample

EPS = {"float32": 2.0**-23, "float64": 2.0**-52}


def sample(error, *, noise=1e-6, dtype="float32", size=1000, seed=0, **changes):
    """A tensor whose float32 runs are off by ``noise``, and torch by ``error``."""
    rng = np.random.default_rng(seed)
    wide = rng.normal(size=size)

    def off(by, dtype):
        return (wide * (1 + by * rng.normal(size=size))).astype(dtype)

    torch, narrow, *others = off(error, dtype), *(off(noise, "f") for _ in range(4))
    given = {
        "name": "w",
        "module": "",
        "torch": torch,
        "narrow": narrow,
        "wide": wide,
        "draws": tuple(Error.of(other, wide) for other in others),
    }
    return Sample(**(given | changes))


def judge(*args, **options):
    rule = options.pop("rule", Rule())
    return judged(0, "gradients", sample(*args, **options), rule)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_noise_passes_and_what_is_more_does_not(seed, size):
    assert judge(1e-6, size=size, seed=seed).passed
    more = 1e-5 if size == 1000 else 1e-2
    assert not judge(more, size=size, seed=seed).passed


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_few_ulps_pass_however_small_the_noise(dtype):
    few = 2 * EPS[dtype]
    assert judge(few, noise=0.0, dtype=dtype).passed
    assert not judge(1e4 * EPS[dtype], noise=0.0, dtype=dtype).passed


def test_in_float64_a_rounding_of_float32_is_a_mistake():
    assert judge(1e-14, dtype="float64").passed
    assert not judge(1e-8, dtype="float64").passed


def test_one_wrong_element_of_many_is_seen():
    found = sample(1e-7, noise=1e-7, size=100_000)
    found.torch[4321] *= np.float32(1 + 1e-4)
    result = judged(0, "gradients", found, Rule())
    assert not result.passed
    assert result.mismatched == 1
    assert result.hint == "the element at (4321,) alone differs"


def test_the_port_may_not_lose_digits_that_torch_keeps():
    found = judge(1e-7, noise=1e-3)
    assert not found.passed
    assert "loses digits that torch keeps" in found.detail
    assert found.port_error > 1000 * found.torch_error


def test_it_loses_digits_in_all_of_its_runs_if_it_does():
    rng = np.random.default_rng(0)
    wide = rng.normal(size=1000)
    torch = wide.astype("f")
    narrow = (wide * (1 + 1e-3 * rng.normal(size=1000))).astype("f")
    far = Error.of(narrow, wide)
    sides = {"torch": torch, "narrow": narrow, "wide": wide}

    def verdict(*draws):
        return judged(0, "gradients", Sample("w", "", draws=draws, **sides), Rule())

    assert "loses digits that torch keeps" in verdict(far, far).detail
    assert verdict(far, Error(far.norm / 1e3, far.peak / 1e3)).passed


def test_torch_is_near_the_truth_by_luck_where_there_are_few_elements():
    wide = np.asarray([1.0, 2.0, 3.0])
    torch = (wide * (1 + 5e-7)).astype("f")

    def verdict(error):
        narrow = (wide * (1 + error)).astype("f")
        return judged(0, "gradients", Sample("w", "", torch, narrow, wide), Rule())

    assert verdict(1e-4).passed
    assert "loses digits that torch keeps" in verdict(1e-3).detail


def test_noise_that_leaves_nothing_to_compare_is_no_pass():
    found = judge(0.3, noise=0.5)
    assert not found.passed
    assert "leaves nothing to compare" in found.detail


def test_a_difference_of_parameters_is_as_coarse_as_they_are():
    wide = np.full(100, 1e-6)
    torch = np.full(100, 1.05e-6, "f")
    exact = {"torch": torch, "narrow": wide.astype("f"), "wide": wide}
    rule = Rule()
    assert not judged(0, "update", Sample("w", "", **exact), rule).passed
    grain = np.full(100, 2.0**-24)
    assert judged(0, "update", Sample("w", "", grain=grain, **exact), rule).passed


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        (lambda a: a[:-1], "shape differs: (999,) in torch, (1000,) in port"),
        (lambda a: a.astype("f2"), "dtype differs: float16 in torch, float32 in port"),
        (lambda a: np.where(np.arange(1000) == 7, np.nan, a).astype("f"), "at (7,)"),
    ],
)
def test_shape_and_dtype_and_nan_come_before_values(change, detail):
    plain = sample(1e-7)
    found = judged(
        *(0, "gradients"),
        Sample("w", "", change(plain.torch), plain.narrow, plain.wide),
        Rule(),
    )
    assert not found.passed
    assert detail in found.detail


def test_a_hint_says_what_a_difference_looks_like():
    rng = np.random.default_rng(0)
    square, images = rng.normal(size=(4, 4)), rng.normal(size=(2, 3, 3))
    assert hint(square, -0.5 * square, 0.0) == "the port has -0.5 times what torch has"
    assert hint(square, square.T, 0.0).endswith("axes as (1, 0)")
    assert hint(images, images.transpose(0, 2, 1), 0.0).endswith("axes as (0, 2, 1)")
    assert hint(square, square + 3, 0.0) == ("the port has what torch has, and 3 more")
    assert hint(square, np.zeros((4, 4)), 0.0) == "the port has zeros"
    assert hint(np.zeros((4, 4)), square, 0.0) == "torch has zeros"
    assert hint(square, rng.normal(size=(4, 4)), 0.0) == ""
    column = square.copy()
    column[:, 2] = rng.normal(size=4)
    assert hint(square, column, 0.0) == "index 2 along axis 1 alone differs"
    row = square.copy()
    row[3] = 0
    place = "index 3 along axis 0 alone differs"
    assert hint(row, square, 0.0) == f"{place}, where torch has zeros"
    assert hint(square, row, 0.0) == f"{place}, where the port has zeros"


def test_a_norm_that_is_far_off_is_another_norm():
    grads = {"w": np.asarray([3.0, 4.0], "f")}
    five = np.float64(5)
    assert inaccuracy(np.float32(5.001), five, grads) > 1
    assert inaccuracy(np.float32(5.5), five, grads) == 1
    assert inaccuracy(np.float32(5), five, grads) == 1
    assert inaccuracy(np.float32(5.001), None, grads) == 1


def test_inputs_are_changed_by_an_ulp_and_no_more():
    array = np.linspace(-2, 2, 101, dtype="f")
    nudged = Precision(False, 1).cast(array)
    ratio = nudged[array != 0] / array[array != 0]
    np.testing.assert_array_less(np.abs(ratio - 1), 2.1 * EPS["float32"])
    assert (nudged != array).mean() > 0.9
    assert nudged[50] == array[50] == 0
    np.testing.assert_array_equal(Precision(False, 1).cast(array), nudged)
    assert not np.array_equal(Precision(False, 2).cast(array), nudged)
    counts = np.arange(5)
    assert Precision(False, 1).cast(counts) is counts
    assert Precision(True).cast(array).dtype == np.float64
    assert Precision(False).cast(array.astype("f8")).dtype == np.float32


def test_a_batch_is_nested_as_the_loop_gave_it():
    flat = [("x.0", 1), ("x.1.b", 2), ("x.1.a.0", 3), ("y", 4), ("z.1", 5)]
    assert nested_batch(flat) == {
        "x": (1, {"b": 2, "a": (3,)}),
        "y": 4,
        "z": {"1": 5},
    }
