"""The comparison helpers are themselves compared: with right sides and with wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxclip.parity import (
    ParityError,
    assert_trees_close,
    assert_trees_equal,
    compare_to_noise,
    compare_trees,
)

BFLOAT16 = np.dtype(jnp.bfloat16)


def equal(actual, expected, **options):
    assert_trees_equal(actual, expected, **options)


def close(actual, expected, **options):
    assert_trees_close(actual, expected, rtol=1e-6, atol=0.0, **options)


def noise(actual, expected, **options):
    """The tree under test as the reference, the other one as the port."""
    compare_trees(
        actual, expected, in_float64(expected), **options
    ).raise_if_different()


HELPERS = [equal, close, noise]


def in_float64(tree):
    def widened(leaf):
        rounds = np.asarray(leaf).dtype.kind in "fV"  # V: bfloat16 among them
        return np.asarray(leaf, np.float64) if rounds else leaf

    return jax.tree.map(widened, tree)


def arrays():
    rng = np.random.default_rng(0)
    return {
        "rnn": {
            "w": rng.normal(size=(4, 4)).astype(np.float32),
            "b": rng.normal(size=4).astype(np.float32),
        },
        "half": rng.normal(size=3).astype(BFLOAT16),
        "loss": np.float32(2.5),
        "count": np.int32(7),
    }


def one_element(tree):
    tree["rnn"]["w"][1, 2] *= np.float32(1.001)


def one_element_of_half(tree):
    tree["half"][1] *= BFLOAT16.type(4)


def transpose(tree):
    tree["rnn"]["w"] = tree["rnn"]["w"].T


def drop_key(tree):
    del tree["rnn"]["b"]


def add_key(tree):
    tree["rnn"]["c"] = np.ones(2, np.float32)


def rename_key(tree):
    tree["rnn"]["B"] = tree["rnn"].pop("b")


def empty_out(tree):
    tree["rnn"]["b"] = None


def nest(tree):
    tree["loss"] = {"value": tree["loss"]}


def widen(tree):
    tree["rnn"]["b"] = tree["rnn"]["b"].astype(np.float64)


def widen_half(tree):
    tree["half"] = tree["half"].astype(np.float32)


def other_half(tree):
    tree["half"] = tree["half"].astype(np.float16)


def widen_count(tree):
    tree["count"] = np.int64(7)


def python_number(tree):
    tree["loss"] = 2.5


def scalar_to_vector(tree):
    tree["loss"] = np.full(1, 2.5, np.float32)


def row(tree):
    tree["rnn"]["b"] = tree["rnn"]["b"][None, :]


def flatten(tree):
    tree["rnn"]["w"] = tree["rnn"]["w"].reshape(-1)


def count_wrong(tree):
    tree["count"] = np.int32(8)


def not_a_number(tree):
    tree["rnn"]["b"][2] = np.nan


def infinite(tree):
    tree["rnn"]["b"][2] = np.inf


VALUES = (
    "differ in their bits|differ by more than|"
    "more than noise|loses digits|noise leaves nothing to compare"
)
NOT_FINITE = "differ in their bits|are not finite and differ"

DAMAGES = [
    (one_element, rf"FAIL \['rnn'\]\['w'\]: .*({VALUES})"),
    (one_element_of_half, rf"FAIL \['half'\]: .*({VALUES})"),
    (transpose, rf"FAIL \['rnn'\]\['w'\]: .*({VALUES})"),
    (drop_key, r"FAIL \['rnn'\]\['b'\]: structure differs: .*nothing in"),
    (add_key, r"FAIL \['rnn'\]\['c'\]: structure differs: .*nothing in"),
    (rename_key, r"2 of 6 tensors FAIL(.|\n)*FAIL \['rnn'\]\['B'\]: structure differs"),
    (empty_out, r"FAIL \['rnn'\]\['b'\]: structure differs: .*nothing in"),
    (nest, r"FAIL \['loss'\]\['value'\]: structure differs"),
    (widen, r"FAIL \['rnn'\]\['b'\]: dtype .*float64 in"),
    (widen_half, r"FAIL \['half'\]: dtype differs: .*float32 in"),
    (other_half, r"FAIL \['half'\]: dtype differs: .*float16 in"),
    (widen_count, r"FAIL \['count'\]: dtype differs: .*int64 in"),
    (python_number, r"FAIL \['loss'\]: dtype differs: .*float64 in"),
    (scalar_to_vector, r"FAIL \['loss'\]: shape differs: .*\(1,\) in"),
    (row, r"FAIL \['rnn'\]\['b'\]: shape differs: .*\(1, 4\) in"),
    (flatten, r"FAIL \['rnn'\]\['w'\]: shape differs: .*\(16,\) in"),
    (count_wrong, r"FAIL \['count'\]: 1 of 1 elements differ( in their|, and int32)"),
    (not_a_number, rf"FAIL \['rnn'\]\['b'\]: 1 of 4 elements ({NOT_FINITE}).*nan in"),
    (infinite, rf"FAIL \['rnn'\]\['b'\]: 1 of 4 elements ({NOT_FINITE}).*inf in"),
]


@pytest.mark.parametrize("helper", HELPERS)
def test_equal_trees_pass(helper):
    helper(arrays(), arrays())


@pytest.mark.parametrize("helper", HELPERS)
@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_damage_on_either_side_fails(helper, damage, message):
    damaged = arrays()
    damage(damaged)
    with pytest.raises(ParityError, match=message):
        helper(damaged, arrays())
    with pytest.raises(ParityError, match=message):
        helper(arrays(), damaged)


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_damage_in_the_candidate_alone_fails(damage, message):
    candidate = arrays()
    damage(candidate)
    comparison = compare_trees(arrays(), candidate, in_float64(arrays()))
    assert not comparison
    with pytest.raises(ParityError, match=message):
        comparison.raise_if_different()


# A small error in `exact` alone looks like noise, and its own dtype is float64.
IN_EXACT = [
    (damage, message)
    for damage, message in DAMAGES
    if damage not in (one_element, one_element_of_half, widen, widen_count)
    and damage not in (widen_half, other_half, python_number)
]


@pytest.mark.parametrize(("damage", "message"), IN_EXACT)
def test_damage_in_exact_alone_fails(damage, message):
    exact = in_float64(arrays())
    damage(exact)
    with pytest.raises(ParityError, match=message):
        compare_trees(arrays(), arrays(), exact).raise_if_different()


def test_exact_in_float32_fails():
    with pytest.raises(ParityError, match=r"exact must be float64 .*enable_x64"):
        compare_trees(arrays(), arrays(), arrays()).raise_if_different()


def test_a_candidate_in_float64_fails():
    x = np.ones(3)
    comparison = compare_to_noise(x, x, x)
    assert not comparison
    assert "dtype leaves no noise to measure (see assert_trees_close)" in str(
        comparison
    )


@pytest.mark.parametrize("helper", HELPERS)
@pytest.mark.parametrize(
    "nothing",
    [{}, [], None, (), {"a": None}, {"a": {}}, {"a": np.zeros((0, 3), np.float32)}],
    ids=str,
)
def test_comparing_nothing_fails(helper, nothing):
    with pytest.raises(ParityError, match="nothing was compared"):
        helper(nothing, nothing)


@pytest.mark.parametrize("helper", HELPERS)
def test_one_scalar_is_something_to_compare(helper):
    helper(np.float32(1), np.float32(1))
    with pytest.raises(ParityError, match="1 of 1 tensors FAIL, at worst tensor"):
        helper(np.float32(1), np.float32(1.01))


def test_an_empty_array_alone_is_nothing():
    empty = np.zeros((0, 3), np.float32)
    with pytest.raises(ParityError, match="nothing was compared"):
        compare_to_noise(empty, empty, empty.astype(np.float64))


@pytest.mark.parametrize("helper", HELPERS)
def test_an_empty_array_among_others_must_agree_in_shape_and_dtype(helper):
    def tree(shape=(0, 3), dtype=np.float32):
        return {"empty": np.zeros(shape, dtype), "one": np.ones(1, np.float32)}

    helper(tree(), tree())
    with pytest.raises(ParityError, match=r"shape differs: .*\(3, 0\)"):
        helper(tree(shape=(3, 0)), tree())
    with pytest.raises(ParityError, match=r"dtype differs: .*float16"):
        helper(tree(dtype=np.float16), tree())


@pytest.mark.parametrize("helper", HELPERS)
def test_nan_equals_nan_only_on_request(helper):
    tree = {"x": np.array([1, np.nan, 3], np.float32)}
    hint = r"1 of 3 elements .*\(pass equal_nan=True if NaN is right\), first at \(1,\)"
    with pytest.raises(ParityError, match=hint):
        helper(tree, tree)
    helper(tree, tree, equal_nan=True)


@pytest.mark.parametrize("helper", HELPERS)
@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16, np.float32], ids=str)
def test_nans_of_any_payload_are_equal_on_request(helper, dtype):
    unsigned = f"u{np.dtype(dtype).itemsize}"
    infinity = np.array(np.inf, dtype).view(unsigned)  # and above it, the NaNs
    bits = np.array([infinity + 1, infinity + 3, 0], unsigned)
    quiet = np.array([np.nan, -np.nan, 0], dtype)
    helper({"x": bits.view(dtype)}, {"x": quiet}, equal_nan=True)
    with pytest.raises(ParityError, match="2 of 3 elements"):
        helper({"x": bits.view(dtype)}, {"x": quiet})


@pytest.mark.parametrize("helper", HELPERS)
def test_nan_elsewhere_fails_even_then(helper):
    here = {"x": np.array([1, np.nan, 3], np.float32)}
    there = {"x": np.array([1, 2, np.nan], np.float32)}
    with pytest.raises(ParityError, match=r"2 of 3 elements"):
        helper(here, there, equal_nan=True)


@pytest.mark.parametrize("helper", HELPERS)
def test_a_number_beside_an_equal_nan_is_still_compared(helper):
    right = {"x": np.array([1, np.nan, 3], np.float32)}
    wrong = {"x": np.array([1, np.nan, 4], np.float32)}
    with pytest.raises(ParityError, match=VALUES):
        helper(wrong, right, equal_nan=True)


@pytest.mark.parametrize("helper", HELPERS)
def test_infinities_are_equal_by_sign(helper):
    plus = {"x": np.array([1, np.inf], np.float32)}
    minus = {"x": np.array([1, -np.inf], np.float32)}
    helper(plus, plus)
    with pytest.raises(ParityError, match=r"first at \(1,\): -?inf in .*-?inf in"):
        helper(plus, minus)


@pytest.mark.parametrize("helper", HELPERS)
def test_one_wrong_element_in_a_million(helper):
    right = np.random.default_rng(1).normal(size=(1000, 1000)).astype(np.float32)
    wrong = right.copy()
    # In the L2 norm this is 2e-7 of the whole, the rounding of a single operation.
    wrong[617, 42] += np.float32(2e-4)
    helper({"x": right.copy()}, {"x": right})
    with pytest.raises(ParityError, match=rf"({VALUES})(.|\n)* at \(617, 42\)"):
        helper({"x": wrong}, {"x": right})


def test_zeros_of_either_sign():
    plus, minus = {"x": np.zeros(2, np.float32)}, {"x": -np.zeros(2, np.float32)}
    with pytest.raises(ParityError, match=r"2 of 2 .* 0.0 in expected, -0.0 in actual"):
        equal(minus, plus)
    close(minus, plus)
    noise(minus, plus)


def test_bits_of_a_complex_array():
    x = {"x": np.array([1 + 2j, 3 - 4j], np.complex64)}
    equal(x, x)
    close(x, x)
    with pytest.raises(ParityError, match=r"1 of 2 elements differ in their bits"):
        equal({"x": np.array([1 + 2j, 3 + 4j], np.complex64)}, x)
    with pytest.raises(ParityError, match=r"1 of 2 elements differ by more than rtol"):
        close({"x": np.array([1 + 2j, 3 + 4j], np.complex64)}, x)
    assert "the real and the imaginary part" in str(compare_trees(x, x, x))


@pytest.mark.parametrize(
    ("rtol", "atol", "passes"),
    [(0, 0.1, True), (0, 0.0999, False), (0.05, 0, True), (0.0499, 0, False)],
)
def test_tolerance_is_atol_plus_rtol_of_expected(rtol, atol, passes):
    expected, actual = {"x": np.array([2.0, -2.0])}, {"x": np.array([2.0, -2.1])}
    rtol, atol = rtol + 1e-15, atol + 1e-15  # 2.1 - 2.0 is not 0.1 to the last bit
    if passes:
        assert_trees_close(actual, expected, rtol=rtol, atol=atol)
    else:
        with pytest.raises(
            ParityError, match=r"1 of 2 .* first at \(1,\): -2.0 in exp"
        ):
            assert_trees_close(actual, expected, rtol=rtol, atol=atol)


def test_no_tolerance_excuses_integers():
    big = {"x": np.array([2**53], np.int64)}
    with pytest.raises(ParityError, match="differ, and int64 does not round"):
        assert_trees_close({"x": big["x"] + 1}, big, rtol=1.0, atol=1.0)


@pytest.mark.parametrize("helper", HELPERS)
def test_every_failing_tensor_is_reported_in_the_order_of_the_tree(helper):
    names = ["z", "m", "a", "k"]
    right = {name: np.ones(3, np.float32) for name in names}
    wrong = right | {name: np.full(3, 2, np.float32) for name in ("k", "z", "a")}
    with pytest.raises(ParityError, match=r"^3 of 4 tensors FAIL") as caught:
        helper({name: wrong[name] for name in sorted(names)}, right)
    lines = str(caught.value).splitlines()[1:]
    order = ["a", "k", "z"] if helper is noise else ["z", "a", "k"]
    assert [line.split(":")[0] for line in lines] == [f"  FAIL ['{n}']" for n in order]


@pytest.mark.parametrize("helper", HELPERS)
@pytest.mark.parametrize("leaf", ["text", object(), np.array(["text"]), b"bytes"])
def test_a_leaf_that_is_no_array_of_numbers_is_refused(helper, leaf):
    right = {"x": np.ones(2, np.float32)}
    what = r"a \w+, not a tensor or an array|an array of <U4, not of numbers"
    with pytest.raises(TypeError, match=rf"\['y'\] is ({what})"):
        helper({"x": np.ones(2, np.float32), "y": leaf}, right)


@pytest.mark.parametrize("helper", HELPERS)
def test_trees_are_not_mutated(helper):
    actual, expected = arrays(), arrays()
    for tree in (actual, expected):
        for x in (tree["rnn"]["w"], tree["rnn"]["b"], tree["half"]):
            x.flags.writeable = False
    helper(actual, expected)
    assert list(actual) == list(arrays())
