"""What clips make XLA allocate: nothing of the size of the gradients."""

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxclip

SHAPES = {"w": (256, 512), "v": (512, 256), "b": (512,)}
ADAM = optax.adamw(1e-3)


def labels(updates):
    return jaxclip.by_path(lambda path: "b" if path == "b" else "rest")(updates)


CLIPS = {
    "clip_by_global_norm": jaxclip.clip_by_global_norm(1.0),
    "norm_type=1": jaxclip.clip_by_global_norm(1.0, 1.0),
    "norm_type=3": jaxclip.clip_by_global_norm(1.0, 3.0),
    "norm_type=inf": jaxclip.clip_by_global_norm(1.0, float("inf")),
    "per_leaf": jaxclip.clip_by_global_norm(1.0, per_leaf=True),
    "zero": jaxclip.clip_by_global_norm(1.0, nonfinite="zero"),
    "norm to log": jaxclip.clip_by_global_norm(float("inf")),
    "clip_by_norm": jaxclip.clip_by_norm(1.0),
    "clip_by_value": jaxclip.clip_by_value(1.0),
    "clip_by_block_rms": jaxclip.clip_by_block_rms(1.0),
    "clip_by_group_norm": jaxclip.clip_by_group_norm({"b": 1.0, "rest": 1.0}, labels),
    "adaptive_grad_clip": jaxclip.adaptive_grad_clip(),
    "autoclip": jaxclip.autoclip(window=100),
    "zclip": jaxclip.zclip(),
    "adagc": jaxclip.adagc(),
}


def tree(dtype):
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in SHAPES.items()}


def nbytes(arrays):
    return sum(leaf.size * leaf.dtype.itemsize for leaf in arrays.values())


def temporary(function, *arguments, donate):
    program = jax.jit(function, donate_argnums=donate).lower(*arguments).compile()
    return program.memory_analysis().temp_size_in_bytes


def share_of_step(clip, dtype):
    """Return what a step of AdamW allocates, in units of the gradients' bytes."""
    grads = tree(dtype)

    def step(params, adam_state, state, grads):
        updates, state = clip.update(grads, state, params)
        updates, adam_state = ADAM.update(updates, adam_state, params)
        return optax.apply_updates(params, updates), adam_state, state

    states = jax.eval_shape(ADAM.init, grads), jax.eval_shape(clip.init, grads)
    return temporary(step, grads, *states, grads, donate=(0, 1, 2)) / nbytes(grads)


# One of each kind; the others take as long again.
QUICK = {"clip_by_global_norm", "norm_type=3", "zero", "norm to log", "clip_by_norm"}


@pytest.mark.parametrize(
    "clip",
    [
        pytest.param(clip, id=name, marks=[pytest.mark.long] * (name not in QUICK))
        for name, clip in CLIPS.items()
    ],
)
def test_in_a_training_step_a_clip_needs_no_memory(clip):
    assert share_of_step(clip, jnp.float32) < 0.05


def test_the_test_above_sees_a_copy_of_the_gradients():
    assert share_of_step(optax.clip_by_global_norm(1.0), jnp.float32) > 0.9


def test_a_norm_of_narrow_gradients_to_log_needs_none_either():
    assert share_of_step(CLIPS["norm to log"], jnp.bfloat16) < 0.05


@pytest.mark.parametrize("name", ["clip_by_global_norm", "clip_by_norm"])
def test_alone_no_clip_widens_narrow_gradients_in_memory(name):
    clip, grads = CLIPS[name], tree(jnp.bfloat16)
    state = jax.eval_shape(clip.init, grads)
    assert temporary(clip.update, grads, state, donate=(0, 1)) < 0.05 * nbytes(grads)
