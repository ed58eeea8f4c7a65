"""Muon, against torch's in bfloat16 and in wider dtypes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxclip.optim import muon
from tests.optim.against_torch import (
    Pair,
    apart,
    error,
    gradients,
    parameters,
    run_ours,
    run_ours_with_absent,
    run_torch,
)

SHAPES = {"tall": (8, 6), "wide": (6, 8), "square": (7, 7)}
OPTIONS = [
    {},
    {
        "nesterov": False,
        "weight_decay": 0.0,
        "adjust_lr_fn": "match_rms_adamw",
        "momentum": 0.4,
        "ns_coefficients": (2.0, -1.5, 0.5),
        "eps": 0.3,
        "ns_steps": 2,
    },
    *(
        pytest.param(options, marks=pytest.mark.long)
        for options in (
            {"nesterov": False, "weight_decay": 0.0, "adjust_lr_fn": "original"},
            {"momentum": 0.0, "adjust_lr_fn": "match_rms_adamw", "ns_steps": 2},
            {"momentum": 0.4, "ns_coefficients": (2.0, -1.5, 0.5), "eps": 0.3},
        )
    ),
]


def pair_of(options, **ours):
    ours = {"out_axis": 0} | ours
    return Pair(torch.optim.Muon, partial(muon, **ours), {"lr": 0.1} | options)


@pytest.fixture
def torch_in_full(monkeypatch):
    """Let torch iterate in the dtype of the parameters, instead of in bfloat16."""
    # A copy, as torch divides it in place.
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.usefixtures("torch_in_full")
def test_float64_is_torchs_in_either_layout(options):
    params, grads = parameters(shapes=SHAPES), gradients(shapes=SHAPES)
    expected = run_torch(pair_of(options), params, grads)

    def both(arrays):
        arrays = {name: arrays[name] for name in SHAPES}
        transposed = {f"{k}.T": v.swapaxes(-1, -2) for k, v in arrays.items()}
        return arrays | transposed

    pair = pair_of(
        options,
        ns_dtype="float64",
        out_axis=lambda path, array: -1 if path.endswith(".T") else 0,
    )
    with jax.enable_x64(True):
        history = run_ours(pair, both(params), both(grads))
    for name, distance in apart(history, both(expected)).items():
        assert distance.max() < 1e-12, name


@pytest.mark.parametrize("options", OPTIONS[1:], ids=str)
@pytest.mark.usefixtures("torch_in_full")
def test_float32_is_as_near_to_float64_as_torchs(options):
    params, grads = parameters(shapes=SHAPES), gradients(shapes=SHAPES)
    truth = run_torch(pair_of(options), params, grads)
    theirs = run_torch(pair_of(options), params, grads, torch.float32)
    ours = run_ours(pair_of(options, ns_dtype="float32"), params, grads, np.float32)
    assert error(ours, truth) <= 2 * error(theirs, truth)


def test_bfloat16_is_torchs_to_the_last_bit():
    # Without weights, so that an update is what is compared.
    params = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    grads = gradients(shapes=SHAPES, steps=1)
    options = {"lr": 1.0, "momentum": 0.0}
    expected = run_torch(pair_of(options), params, grads, torch.float32)
    got = run_ours(pair_of(options), params, grads, np.float32)
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)


def test_bfloat16_stays_by_torchs_over_many_steps(monkeypatch):
    shapes = {"large": (64, 48), **SHAPES}
    params, grads = parameters(shapes=shapes), gradients(shapes=shapes)
    expected = run_torch(pair_of({}), params, grads)
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    in_full = run_torch(pair_of({}), params, grads)
    with jax.enable_x64(True):
        history = run_ours(pair_of({}), params, grads)
    for name in shapes:
        ours, bfloat16 = (
            np.linalg.norm(other[name][-1] - expected[name][-1])
            for other in (history, in_full)
        )
        # One product that is rounded once more takes ours as far as that.
        assert ours < 0.2 * bfloat16, name


def test_a_parameter_without_a_gradient_stays_as_it_is():
    def absent(name, step):
        return (name == "tall" and step < 2) or (name == "wide" and step == 3)

    params, grads = parameters(shapes=SHAPES), gradients(shapes=SHAPES, steps=5)
    expected = run_torch(pair_of({}), params, grads, torch.float32, absent=absent)
    history = run_ours_with_absent(pair_of({}), params, grads, absent)
    distances = apart(history, {name: expected[name] for name in params})
    for name, distance in distances.items():
        assert distance.max() < 1e-6, name


@pytest.mark.parametrize("ns_dtype", ["bfloat16", "float32", "float64"])
def test_zero_gradients_move_nothing(ns_dtype):
    params = jnp.ones((3, 2))
    optimizer = muon(weight_decay=0.0, ns_dtype=ns_dtype)
    updates, _ = optimizer.update(jnp.zeros((3, 2)), optimizer.init(params))
    assert not updates.any()


def test_out_axis_is_which_the_ratio_is_of():
    grads = jnp.asarray(gradients(shapes={"w": (16, 4)}, steps=1)["w"][0], jnp.float32)

    def size(**options):
        optimizer = muon(1.0, weight_decay=0.0, **options)
        updates, _ = optimizer.update(grads, optimizer.init(grads))
        return float(jnp.linalg.norm(updates))

    assert size(out_axis=0) == pytest.approx(2 * size())
    matched = {"adjust_lr_fn": "match_rms_adamw"}
    assert size(out_axis=0, **matched) == pytest.approx(size(**matched))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": -1.0}, r"muon\(lr=-1\): expected a number ≥ 0"),
        ({"momentum": -1.0}, r"muon\(momentum=-1\): expected a number ≥ 0"),
        ({"weight_decay": -1.0}, r"muon\(weight_decay=-1\): expected a number ≥ 0"),
        ({"adjust_lr_fn": "no"}, r"\(adjust_lr_fn='no'\): expected one of 'original'"),
        ({"ns_steps": 100}, r"muon\(ns_steps=100\): expected a whole number from 0"),
        (
            {"ns_coefficients": (1.0, 2.0)},
            r"\(ns_coefficients=\(1.0, 2.0\)\): expected three numbers",
        ),
    ],
)
def test_what_torch_refuses_is_refused(arguments, message):
    weight = torch.nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.ones(2, 2)
    with pytest.raises(ValueError, match=r"should be|not supported|must be"):
        torch.optim.Muon([weight], **arguments).step()
    with pytest.raises(ValueError, match=message):
        muon(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ns_steps": jnp.int32(5)}, r"muon\(ns_steps=5\).* name it in static_args"),
        ({"ns_dtype": "float16"}, r"ns_dtype='float16'\): expected one of 'bfloat16'"),
        (
            {"ns_coefficients": None},
            r"\(ns_coefficients=None\): expected three numbers",
        ),
    ],
)
def test_arguments_of_our_own_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        muon(**arguments)


def test_other_than_matrices_are_refused():
    with pytest.raises(ValueError, match="2D parameters"):
        torch.optim.Muon([torch.zeros(3)])
    with pytest.raises(
        ValueError, match=r"'b' has the shape \(3,\); expected a matrix.*partition"
    ):
        muon().init({"b": jnp.ones(3), "w": jnp.ones((2, 2))})


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        (2, r"got 2 for 'w', an array of shape \(2, 2\); expected an axis from -2"),
        (None, r"got None for 'w'; expected an axis, a Python number.*static_args"),
    ],
)
def test_an_axis_that_is_none_is_refused(axis, message):
    with pytest.raises(ValueError, match=r"muon\(out_axis=...\): " + message):
        muon(out_axis=axis).init({"w": jnp.ones((2, 2))})


def test_complex_parameters_are_refused():
    with pytest.raises(TypeError, match="'w' is of complex64; expected a real one"):
        muon().init({"w": jnp.ones((2, 2), jnp.complex64)})
