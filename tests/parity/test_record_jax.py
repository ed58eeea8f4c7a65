"""A run of JAX is recorded as one of torch is, and a port is held against it."""

import os
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

from jaxclip import clip_by_global_norm, convert, optim
from jaxclip.parity import Port, open_trace, record_jax, verify
from tests.parity.jax_runs import (
    LR,
    MAX_NORM,
    RENAME,
    LinenNet,
    Net,
    Renamed,
    batches,
    jax_run,
    linen_loss,
    loss_fn,
    port,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")


# Of what rounds, one draw is enough where something else is to be seen.
QUICK = {"steps": 2, "draws": 1, "free_run": False}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The net, trained by AdamW, clipped."""
    return jax_run(tmp_path_factory.mktemp("plain") / "run.trace", port())


# What a recording holds.


def test_a_step_holds_what_the_step_computed(plain):
    trace = open_trace(plain)
    assert (trace.run.framework, trace.finished, len(trace)) == ("jax", True, 3)
    assert {"jax", "jaxlib", "flax", "optax", "jaxclip"} <= {*trace.run.versions}
    assert "cpu" in trace.run.settings["device"]
    types = {module.path: module.type for module in trace.run.modules}
    assert types["fc"] == "flax.nnx.nn.linear.Linear"
    step = trace[1]
    places = [(a.module, a.call) for a in step.activations]
    assert places == [("fc", 0), ("fc", 1), ("bn", 0), ("head", 0)]
    assert [*step.batch] == ["x", "y"]
    assert {*step.params} == {*step.grads} == {*step.params_after}
    assert {*step.params} == {
        f"{layer}.{what}"
        for layer, kinds in [
            ("fc", ("kernel", "bias")),
            ("bn", ("scale", "bias")),
            ("head", ("kernel", "bias")),
        ]
        for what in kinds
    }
    assert {*step.buffers} == {"bn.mean", "bn.var"}
    assert {*step.opt_state["fc.kernel"]} == {"1.exp_avg", "1.exp_avg_sq"}
    assert {"0.count", "0.total_norm", "1.count"} <= {*step.opt_state[""]}
    assert [event.kind for event in step.events] == [
        *("forward", "backward", "clip", "optimizer_step")
    ]
    norm = np.sqrt(sum((g.astype("d") ** 2).sum() for g in step.grads.values()))
    np.testing.assert_allclose(step.total_norm, norm, rtol=1e-6)
    clipped = np.sqrt(sum((g**2).sum() for g in step.final_grads.values()))
    np.testing.assert_allclose(clipped, min(norm, MAX_NORM), rtol=1e-5)
    assert (step.outputs[0][""] == step.activations[-1].array).all()


@pytest.mark.long
def test_the_steps_are_those_of_a_loop_by_hand(plain):
    model = Net(rngs=nnx.Rngs(0))
    tx = optax.chain(clip_by_global_norm(MAX_NORM), optim.adamw(LR))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    for batch, step in zip(batches(3), open_trace(plain), strict=True):
        (loss, _), grads = nnx.value_and_grad(loss_fn, has_aux=True)(model, batch)
        optimizer.update(model, grads)
        np.testing.assert_allclose(step.loss[0], loss, rtol=1e-6)
        np.testing.assert_allclose(
            step.params_after["fc.kernel"], model.fc.kernel[...], rtol=1e-4, atol=1e-6
        )
        np.testing.assert_allclose(
            step.buffers_after["bn.mean"], model.bn.mean[...], rtol=1e-4, atol=1e-6
        )


def test_the_model_and_the_states_are_to_be_had(tmp_path):
    own = port()
    before = np.array(own.model.fc.kernel[...])
    with record_jax(tmp_path / "run.trace", own) as run:
        losses = [run.step(**batch) for batch in batches(2)]
    step = open_trace(tmp_path / "run.trace")[-1]
    assert (run.model.fc.kernel[...] == step.params_after["fc.kernel"]).all()
    assert (own.model.fc.kernel[...] == before).all()
    assert int(run.opt_state.count) == int(run.clip_state.count) == 2
    assert losses[1] == step.loss[0]


def test_what_is_kept_is_chosen(tmp_path):
    path = jax_run(
        tmp_path / "run.trace",
        port(),
        steps=4,
        every=3,
        keep=["loss", "grads", "activations"],
        activations="h*",
        digest_above=20,
    )
    trace = open_trace(path)
    assert trace.numbers == (0, 3)
    step = trace[1]
    assert [a.module for a in step.activations] == ["head"]
    assert not step.params
    assert {*step.digests["grads"]} == {"fc.kernel", "head.kernel"}
    assert "fc.bias" in step.grads
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        record_jax(path).__enter__()
    with record_jax(path, overwrite=True):
        pass
    assert len(open_trace(path)) == 0


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_dtypes_are_kept(tmp_path, dtype):
    with jax.enable_x64(dtype == "float64"):
        model = nnx.Linear(4, 2, dtype=dtype, param_dtype=dtype, rngs=nnx.Rngs(0))
        own = port(model=model, optimizer=optax.adam(LR))
        jax_run(tmp_path / "run.trace", own, dtype=jnp.dtype(dtype), steps=2)
    trace = open_trace(tmp_path / "run.trace")
    assert trace.run.dtypes == (dtype,)
    step = trace[1]
    arrays = [step.params["kernel"], step.grads["kernel"], step.outputs[0][""]]
    arrays.append(step.opt_state["kernel"]["1.0.mu"])
    assert {str(array.dtype) for array in arrays} == {dtype}
    verify(tmp_path / "run.trace", own).raise_if_different()


def test_a_loss_that_is_not_finite_is_named_once(tmp_path):
    with record_jax(tmp_path / "run.trace", port()) as run:
        for batch in batches(2):
            run.step(x=batch["x"] * np.inf, y=batch["y"])
    assert [(w.code, w.step) for w in run.warnings] == [("loss_not_finite", 0)]
    assert open_trace(tmp_path / "run.trace").warnings == run.warnings


@pytest.mark.long
def test_a_run_that_is_killed_leaves_its_whole_steps(tmp_path):
    path = tmp_path / "run.trace"
    code = f"""
        import os, signal
        from jaxclip.parity import record_jax
        from tests.parity.jax_runs import batches, port
        with record_jax({str(path)!r}, port()) as run:
            for batch in batches(2):
                run.step(**batch)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run(command, env=environment).returncode == -signal.SIGKILL
    trace = open_trace(path)
    assert (len(trace), trace.finished) == (2, False)
    report = verify(path, port(), steps=1)
    assert "did not come to its end" in str(report)


def test_a_run_that_fails_leaves_its_whole_steps(tmp_path):
    def fail():
        with record_jax(tmp_path / "run.trace", activations=False) as run:
            run.add(params={"w": np.ones(2, "f")}, loss=1.0)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    trace = open_trace(tmp_path / "run.trace")
    assert (len(trace), trace.finished) == (1, False)


# A loop of the user's own.


def test_a_loop_hands_over_what_it_has(tmp_path):
    model = Net(rngs=nnx.Rngs(0))
    tx = optax.inject_hyperparams(optax.adam)(lambda count: LR / (1 + count))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    opt_state = tx.init(params)

    def step(params, rest, opt_state, batch):
        def loss_of(params):
            module = nnx.merge(graphdef, params, rest, copy=True)
            loss, outputs = loss_fn(module, batch)
            return loss, (outputs, nnx.state(module, nnx.Not(nnx.Param)))

        found, grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return found, grads, updates, opt_state

    with record_jax(tmp_path / "run.trace") as run:
        for batch in batches(3):
            (loss, (outputs, after)), grads, updates, later = jax.jit(step)(
                params, rest, opt_state, batch
            )
            run.add(
                batch=batch,
                params=params,
                buffers=rest,
                opt_state=opt_state,
                outputs=outputs,
                loss=loss,
                grads=grads,
                updates=updates,
                buffers_after=after,
                opt_state_after=later,
            )
            params, rest = optax.apply_updates(params, updates), after
            opt_state = later
    trace = open_trace(tmp_path / "run.trace")
    rates = [step.hyperparameters[0]["lr"] for step in trace]
    np.testing.assert_allclose(rates, [LR, LR / 2, LR / 3], rtol=1e-6)
    own = port(model=model, optimizer=tx, clip=None)
    report = verify(tmp_path / "run.trace", own)
    report.raise_if_different()
    compared = {stage.stage for stage in report.stages if stage.tensors}
    assert compared >= {"output", "gradients", "update", "optimizer state"}
    wrong = optax.inject_hyperparams(optax.adam)(lambda count: LR / (1 + 2 * count))
    own = port(model=model, optimizer=wrong, clip=None)
    report = verify(tmp_path / "run.trace", own, **QUICK)
    assert (report.first.step, report.first.stage) == (1, "update")


def test_a_module_stands_for_its_variables(tmp_path):
    model = Net(rngs=nnx.Rngs(0))
    with record_jax(tmp_path / "run.trace") as run:
        run.add(params=model, activations={"fc": jnp.ones(3)}, loss=1.0)
    [step] = open_trace(tmp_path / "run.trace")
    assert {*step.buffers} == {"bn.mean", "bn.var"}
    assert step.activations[0].module == "fc"


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({}, ValueError, "there is nothing to record"),
        ({"updates": {"w": 1.0}}, ValueError, "give it with params="),
        (
            {"params": {"w": 1.0}, "grads": {"v": 1.0}},
            ValueError,
            "params and grads are trees of other names: 'v' is in one of them alone",
        ),
        ({"grads": {"w": "text"}}, TypeError, "grads's 'w' is a str"),
        ({"batch": {"x": "text"}}, TypeError, "'x' is a str.* Leave out of the batch"),
    ],
)
def test_what_cannot_be_added_is_refused(tmp_path, given, error, message):
    with record_jax(tmp_path / "run.trace") as run:
        with pytest.raises(error, match=message):
            run.add(**given)
        run.add(params={"w": np.ones(2)}, loss=1.0)
    assert open_trace(tmp_path / "run.trace").numbers == (0,)


def test_what_cannot_be_recorded_is_refused(tmp_path):
    path = tmp_path / "run.trace"
    with pytest.raises(TypeError, match=r"expected a jaxclip.parity.Port, got Net"):
        record_jax(path, Net(rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"record_jax\(every=0\)"):
        record_jax(path, port(), every=0)
    with pytest.raises(RuntimeError, match=r"run.step\(\) outside of the recording"):
        record_jax(path, port()).step(x=1)
    with record_jax(path) as run:
        with pytest.raises(ValueError, match="the recording has no port"):
            run.step(x=1)
        with pytest.raises(ValueError, match=r"run.model: the recording has no port"):
            _ = run.model
        with pytest.raises(TypeError, match="Leave out of the batch"):
            run.add(batch={"x": "text"})
    assert len(open_trace(path)) == 0


# A port against a recording.


@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(optax.adam(LR), marks=pytest.mark.long),
        pytest.param(optax.sgd(LR, momentum=0.9), marks=pytest.mark.long),
        pytest.param(
            optax.MultiSteps(
                optax.chain(optax.clip_by_global_norm(MAX_NORM), optax.adamw(LR)), 2
            ).gradient_transformation()
        ),
        pytest.param(
            optax.chain(clip_by_global_norm(MAX_NORM), optim.sgd(LR, momentum=0.9)),
            marks=pytest.mark.long,
        ),
        pytest.param(
            optax.inject_hyperparams(optax.rmsprop)(
                optax.exponential_decay(LR, 1, 0.5)
            ),
            marks=pytest.mark.long,
        ),
        pytest.param(
            optax.partition(
                {"a": optax.adam(LR, mu_dtype="bfloat16"), "b": optax.sgd(LR)},
                lambda params: jax.tree.map_with_path(
                    lambda path, _: "a" if "kernel" in str(path) else "b", params
                ),
            ),
            marks=pytest.mark.long,
        ),
    ],
)
def test_a_run_is_the_same_as_itself_to_the_bit(tmp_path, optimizer):
    own = port(optimizer=optimizer, clip=None)
    path = jax_run(tmp_path / "run.trace", own, steps=4)
    report = verify(path, own, draws=0)
    report.raise_if_different()
    tensors = [tensor for stage in report.stages for tensor in stage.tensors]
    assert all(tensor.relative_l2 == 0 for tensor in tensors)
    assert {s.stage for s in report.stages if s.tensors} >= {"update", "buffers after"}
    assert report.of_stage("optimizer state")[0].tensors
    assert len(report.free_run.steps) == 4
    assert "torch" not in str(report)


def test_modules_may_have_moved(plain):
    moved = port(model=Renamed(rngs=nnx.Rngs(1)), rename=RENAME)
    report = verify(plain, moved, **QUICK)
    report.raise_if_different()
    [activations, *_] = report.of_stage("activations")
    assert [t.name for t in activations.tensors] == ["fc", "fc, call 1", "bn", "head"]
    assert report.of_stage("optimizer state")[0].verdict == "same"
    with pytest.raises(convert.ConversionError) as caught:
        verify(plain, port(model=Renamed(rngs=nnx.Rngs(1))))
    assert "the port's 'body.linear.kernel' (4, 4) is not in the recording" in str(
        caught.value
    )
    assert "the recording's 'fc.kernel' (4, 4) is not in the port" in str(caught.value)


@pytest.fixture(scope="module")
def linen_port():
    """The port of the Linen net."""
    x = jnp.ones((1, 4))
    variables = LinenNet().init(jax.random.key(1), x, train=True)
    return port(model=(LinenNet(), variables), loss_fn=linen_loss)


def test_an_nnx_run_holds_a_linen_port(plain, linen_port):
    report = verify(plain, linen_port, **QUICK)
    report.raise_if_different()
    assert not report.of_stage("activations")[0].not_compared
    assert report.of_stage("buffers after")[0].verdict == "same"


@pytest.mark.long
def test_a_linen_run_holds_an_nnx_port(linen_port, tmp_path):
    path = jax_run(tmp_path / "linen.trace", linen_port)
    verify(path, port()).raise_if_different()
    step = open_trace(path)[0]
    assert [(a.module, a.call) for a in step.activations] == [
        *(("fc", 0), ("fc", 1), ("bn", 0), ("head", 0))
    ]
    assert step.activations[0].type == "flax.linen.linear.Dense"


def test_bare_parameters_are_recorded(tmp_path):
    def loss(params, batch):
        outputs = batch["x"] @ params["layer"]["w"]
        return jnp.mean((outputs - batch["y"]) ** 2), outputs

    own = Port({"layer": {"w": np.ones((4, 2), "f")}}, loss, optax.adam(LR))
    path = jax_run(tmp_path / "run.trace", own)
    verify(path, own, **QUICK).raise_if_different()
    assert {*open_trace(path)[0].params} == {"layer.w"}


class Dropped(nnx.Module):
    """A layer with dropout, which draws from a state of its own."""

    def __init__(self, *, rngs):
        """Make the layers."""
        self.fc = nnx.Linear(4, 2, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.drop(self.fc(x))


def test_dropout_draws_the_same_again(tmp_path):
    own = port(model=Dropped(rngs=nnx.Rngs(0)))
    path = jax_run(tmp_path / "run.trace", own)
    first, second, _ = open_trace(path)
    assert first.buffers_after["drop.rngs.count"] == 1
    zeros = [step.activations[1].array == 0 for step in (first, second)]
    assert zeros[0].any()
    assert not (zeros[0] == zeros[1]).all()
    report = verify(path, port(model=Dropped(rngs=nnx.Rngs(7))), **QUICK)
    report.raise_if_different()
    # The noise was measured with the same draws.
    assert report.of_stage("output")[0].tensors[0].port_error < 1e-6


@pytest.mark.long
def test_dropout_of_linen_draws_from_a_key_in_the_batch(tmp_path):
    class Linen(linen.Module):
        @linen.compact
        def __call__(self, x):
            return linen.Dropout(0.5, deterministic=False)(linen.Dense(2)(x))

    def loss(model, batch):
        outputs = model(batch["x"], rngs={"dropout": batch["key"]})
        return jnp.mean(outputs**2), outputs

    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = Linen().init(keys, jnp.ones((1, 4)))
    own = Port((Linen(), variables), loss, optax.sgd(LR))
    path = tmp_path / "run.trace"
    with record_jax(path, own) as run:
        run.step(x=jnp.ones((8, 4)), key=jax.random.key(2))
    report = verify(path, own)
    report.raise_if_different()
    assert report.of_stage("output")[0].tensors[0].port_error < 1e-6


# Planted bugs.


@pytest.mark.parametrize(
    ("changes", "stage", "module"),
    [
        ({"model": Net(rngs=nnx.Rngs(0), fault="swapped kernel")}, "activations", "bn"),
        pytest.param(
            {"optimizer": optim.adamw(2 * LR)},
            *("update", "bn"),
            marks=pytest.mark.long,
        ),
        pytest.param(
            {"optimizer": optim.adamw(LR, eps=1e-5)},
            *("update", None),
            marks=pytest.mark.long,
        ),
        pytest.param(
            {"clip": clip_by_global_norm(2 * MAX_NORM)},
            *("clipped gradients", None),
            marks=pytest.mark.long,
        ),
        pytest.param({"clip": None}, *("optimizer state", ""), marks=pytest.mark.long),
        pytest.param(
            {"optimizer": optim.sgd(LR)},
            *("optimizer state", ""),
            marks=pytest.mark.long,
        ),
    ],
)
def test_a_bug_is_found_where_it_is(plain, changes, stage, module):
    report = verify(plain, port(**changes), **QUICK)
    assert not report
    assert report.first.stage == stage
    assert module is None or report.first.module == module
    assert "torch" not in str(report)


def test_other_transformations_are_said(plain):
    own = port(optimizer=optax.adam(LR))
    report = verify(plain, own, steps=1, draws=0, free_run=False)
    said = " ".join(tensor.detail for tensor in report.failures)
    assert "the port's optimizer keeps 'fc.kernel/1.0.mu', which is not" in said
    assert "the recorded optimizer kept 'fc.kernel/1.exp_avg', and the port's" in said


@pytest.mark.long
def test_a_run_in_float64_settles_it(tmp_path):
    with jax.enable_x64(True):
        model = Net(rngs=nnx.Rngs(0))
        state = jax.tree.map(lambda x: x.astype("float64"), nnx.state(model))
        nnx.update(model, state)
        own = port(model=model)
        path = jax_run(tmp_path / "run.trace", own, dtype=np.float64)
    verify(path, own).raise_if_different()
    report = verify(path, port(model=model, optimizer=optim.adamw(LR * (1 + 1e-7))))
    assert report.first.stage == "update"
