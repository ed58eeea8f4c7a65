"""The real runs, as small as they can be."""

import contextlib
import dataclasses

import jax
import numpy as np
import pytest
import torch

from jaxclip import models
from jaxclip.demo._language_model import (
    make_task,
    one_torch_thread,
    train_jax,
    train_torch,
)
from jaxclip.demo._settings import CELLS, Settings
from jaxclip.demo._text import load_corpus
from jaxclip.demo._trainings import train_all

# A threshold that the first steps exceed, so that every step is clipped.
TINY = Settings(steps=5, hidden=8, max_norm=0.05)


@contextlib.contextmanager
def unwatched(name, steps):
    yield lambda step, loss: None


@pytest.fixture(scope="module")
def corpus():
    corpus = load_corpus(TINY)
    # 40 different characters and no more than are needed.
    return dataclasses.replace(corpus, tokens=corpus.tokens[:3000] % 40, vocab_size=40)


@pytest.fixture(params=CELLS)
def task(request, corpus):
    return make_task(dataclasses.replace(TINY, cell=request.param), corpus)


def test_torch_and_jax_train_alike(task):
    options = {"max_norm": 0.05, "keep": [5], "dtype": "float64"}
    steps = []

    def on_step(step, loss):
        steps.append(step)

    in_torch = train_torch(task, 5, on_step=on_step, **options)
    in_jax = train_jax(task, 5, on_step=on_step, **options)
    assert steps == [1, 2, 3, 4, 5] * 2
    for name in ("losses", "grad_norms", "clipped_norms"):
        np.testing.assert_allclose(
            getattr(in_jax, name), getattr(in_torch, name), rtol=1e-12
        )
    assert in_torch.clipped_share(0.05) == in_jax.clipped_share(0.05) == 1
    np.testing.assert_allclose(in_jax.clipped_norms, 0.05, rtol=1e-4)
    assert in_torch.weights.keys() == in_jax.weights.keys() == {5}
    assert in_torch.weights[5].keys() == in_jax.weights[5].keys()
    for name, weight in in_torch.weights[5].items():
        assert weight.dtype == in_jax.weights[5][name].dtype == np.float64
        np.testing.assert_allclose(in_jax.weights[5][name], weight, atol=1e-13)


def test_the_jax_step_is_traced_once(corpus, monkeypatch):
    traces = []
    call = models.RNNLM.__call__

    def traced(self, *args):
        traces.append(args)
        return call(self, *args)

    monkeypatch.setattr(models.RNNLM, "__call__", traced)
    train_jax(make_task(TINY, corpus), 4, max_norm=1.0, on_step=lambda *_: None)
    # Without a state it is traced once more, for the shape of the first one.
    assert [len(args) for args in traces] == [1, 2]


@pytest.fixture(scope="module")
def trainings(corpus):
    return train_all(make_task(TINY, corpus), unwatched)


def test_the_runs_are_equal_and_the_unclipped_one_is_not(trainings):
    assert trainings.torch.losses.dtype == trainings.jax.losses.dtype == np.float32
    np.testing.assert_allclose(trainings.torch.losses, trainings.jax.losses, rtol=1e-5)
    free = trainings.unclipped
    np.testing.assert_array_equal(free.grad_norms, free.clipped_norms)
    assert abs(free.losses[-1] - trainings.torch.losses[-1]) > 0.01


def test_what_belongs_to_others_is_left_as_it_was(corpus):
    random_state = torch.random.get_rng_state()
    task = make_task(TINY, corpus)
    weights = {name: w.clone() for name, w in task.model.state_dict().items()}
    for train in (train_torch, train_jax):
        train(task, 1, max_norm=1.0, on_step=lambda *_: None, dtype="float64")
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert not jax.config.jax_enable_x64
    for name, weight in task.model.state_dict().items():
        assert torch.equal(weight, weights[name])


def test_torch_has_one_thread_during_the_runs_and_its_own_number_after():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with one_torch_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
