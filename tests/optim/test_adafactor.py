"""Adafactor over arrays that are laid out otherwise than torch's."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxclip.optim import adafactor
from tests.optim.against_torch import (
    Pair,
    apart,
    gradients,
    parameters,
    run_ours,
    run_torch,
)

# torch's shape, what makes an array of ours of torch's, and what to say of it.
LAYOUTS = {
    "linear": ((8, 6), lambda x: x.T, None),
    "the same": ((2, 5, 3, 4), lambda x: x, (-2, -1)),
    "conv over a line": ((4, 3, 5), lambda x: x.transpose(2, 1, 0), (-2, -3)),
    "conv over a plane": ((4, 3, 5, 2), lambda x: x.transpose(2, 3, 1, 0), (0, 1)),
    "conv over a volume": (
        (2, 3, 4, 5, 2),
        lambda x: x.transpose(2, 3, 4, 1, 0),
        (1, 2),
    ),
    "query": ((6, 5), lambda x: x.T.reshape(5, 2, 3), ((1, 2), 0)),
    "attention's output": ((5, 6), lambda x: x.T.reshape(2, 3, 5), [2, [0, 1]]),
    "attention's bias": ((6,), lambda x: x.reshape(2, 3), ()),
}
TORCHS = {name: shape for name, (shape, _, _) in LAYOUTS.items()}


def ours_of(arrays):
    return {name: LAYOUTS[name][1](array) for name, array in arrays.items()}


def axes_of(path, array):
    return LAYOUTS[path][2]


def test_each_layout_steps_as_torchs_does():
    params = parameters(shapes=TORCHS)
    grads = gradients(shapes=TORCHS, steps=20)
    pair = Pair(
        torch.optim.Adafactor,
        partial(adafactor, factored_axes=axes_of),
        {"lr": 0.1, "weight_decay": 0.1},
    )
    theirs = run_torch(pair, params, grads)
    each_step = {
        name: np.stack([LAYOUTS[name][1](one) for one in grad])
        for name, grad in grads.items()
    }
    with jax.enable_x64(True):
        history = run_ours(pair, ours_of(params), each_step)
    expected = {
        name: np.stack([LAYOUTS[name][1](one) for one in theirs[name]])
        for name in params
    }
    for name, distance in apart(history, expected).items():
        assert distance.max() < 1e-12, name

    for key in ("row_var", "col_var"):
        kept = f"conv over a plane.{key}"
        laid_out = theirs[kept][-1].transpose(2, 3, 1, 0)
        np.testing.assert_allclose(history[kept][-1], laid_out, rtol=1e-12)
    # Rows and columns have changed places.
    np.testing.assert_allclose(
        history["linear.row_var"][-1], theirs["linear.col_var"][-1].T, rtol=1e-12
    )
    state = jax.eval_shape(adafactor(factored_axes=axes_of).init, ours_of(params))
    assert state.variance["linear"] is None
    assert state.row_var["attention's bias"] is None


def test_other_axes_step_otherwise():
    params, grad = (
        jnp.asarray(make(shapes={"w": (2, 3, 4)}, **steps)["w"], jnp.float32)
        for make, steps in ((parameters, {}), (gradients, {"steps": 1}))
    )
    updates = [
        optimizer.update(grad[0], optimizer.init(params), params)[0]
        for axes in ((-2, -1), (0, 1))
        for optimizer in [adafactor(factored_axes=axes)]
    ]
    assert not np.allclose(*updates, rtol=0.1)


def test_one_pair_of_axes_leaves_vectors_alone():
    params = {"conv": jnp.ones((3, 3, 2, 2)), "bias": jnp.ones(2)}
    state = adafactor(factored_axes=(0, 1)).init(params)
    assert state.row_var["conv"].shape == (3, 1, 2, 2)
    assert state.col_var["conv"].shape == (1, 3, 2, 2)
    assert state.variance["bias"].shape == (2,)


def test_eps_of_none_is_that_of_the_parameters_dtype():
    # So small that what is divided by is eps, and not the gradient.
    grad = np.float32([[1e-4, -2e-4], [3e-4, 1e-4]])
    weight = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16))
    weight.grad = torch.tensor(grad).to(torch.bfloat16)
    torch.optim.Adafactor([weight], lr=1.0).step()
    expected = weight.detach().float().numpy() - 1.0

    params = jnp.ones((2, 2), jnp.bfloat16)
    optimizer = adafactor(1.0)
    updates, state = optimizer.update(jnp.asarray(grad), optimizer.init(params), params)
    assert updates.dtype == jnp.bfloat16
    assert state.row_var.dtype == jnp.float32
    stepped = np.asarray(params + updates, np.float32) - 1.0
    # An ulp of bfloat16 below 1.
    np.testing.assert_allclose(stepped, expected, atol=2**-8)
    assert np.abs(expected).max() < 0.1  # and 1 with the eps of float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": -1.0}, r"adafactor\(lr=-1\): expected a number ≥ 0"),
        ({"beta2_decay": 0.5}, r"\(beta2_decay=0.5\): expected a number ≤ 0"),
        ({"eps": (-1.0, 1e-3)}, r"\(eps\[0\]=-1\): expected a number ≥ 0"),
        ({"eps": (None, -1.0)}, r"\(eps\[1\]=-1\): expected a number ≥ 0"),
        ({"d": 0.5}, r"\(d=0.5\): expected a number ≥ 1"),
        ({"weight_decay": -1.0}, r"\(weight_decay=-1\): expected a number ≥ 0"),
    ],
)
def test_what_torch_refuses_is_refused(arguments, message):
    with pytest.raises(ValueError, match=r"should be [<>]= \d but is"):
        torch.optim.Adafactor([torch.zeros(1)], **arguments)
    with pytest.raises(ValueError, match=message):
        adafactor(**arguments)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (None, r"'w' has the shape \(2, 3, 4\), which does not say which axes torch's"),
        (
            (0, 3),
            r"got 3 for 'w', an array of shape \(2, 3, 4\); expected an axis from",
        ),
        ((0, 0), r"got \(0, 0\) for 'w'; expected axes that differ"),
        ((0, (1, 0)), r"got \(0, \(1, 0\)\) for 'w'; expected axes that differ"),
        ((0, 1, 2), r"got \(0, 1, 2\) for 'w'; expected a pair of axes"),
        (lambda path, array: "rows", r"got 'rows' for 'w'; expected a pair of axes"),
    ],
)
def test_axes_that_do_not_fit_are_refused(axes, message):
    with pytest.raises(ValueError, match=message):
        adafactor(factored_axes=axes).init({"w": jnp.ones((2, 3, 4))})


def test_eps_has_to_be_a_pair():
    with pytest.raises(ValueError, match=r"adafactor\(eps=0.001\): expected a pair"):
        adafactor(eps=1e-3)


def test_complex_parameters_are_refused():
    with pytest.raises(TypeError, match=r"'w' is of complex64; expected a real one"):
        adafactor().init({"w": jnp.ones(2, jnp.complex64)})
