"""Ports on a GPU against torch: correct ones are not blamed, and bugs are found."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from torch import nn

from jaxclip import clip_by_global_norm, optim
from jaxclip.parity import Port, compare_traces, open_trace, record, verify
from jaxclip.parity._verify._compute._products import full_products
from tests.parity import jax_runs
from tests.parity.loops import X, Y, equal, step
from tests.parity.mutations import MUTATIONS, Mutation, mutated
from tests.parity.recordings import port_of, recorded
from tests.parity.test_record_bits import OPTIMIZERS, Attentive, Net, Recurrent
from tests.parity.trainings import port, recording
from tests.trios import BY_NAME

if jax.default_backend() != "gpu":
    pytest.skip(
        f"JAX's default backend is {jax.default_backend()!r}, not 'gpu'",
        allow_module_level=True,
    )

DTYPES = (torch.float32, torch.float64)
QUICK = (
    *("transposed", "eps of LayerNorm", "tanh GELU", "tanh GELU of small inputs"),
    *("one element wrong by little", "padding SAME", "eps of BatchNorm"),
    *("mask off by one", "hidden bias outside the reset gate", "missing detach"),
    *("eps of the clip", "learning rate", "bias correction forgotten"),
    "momentum of BatchNorm",
)
"""Bugs that are small, or of another kind than the others."""


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("net", "training"),
    [
        *(("vectors", "adamw"), ("images", "sgd"), ("tokens", "schedule")),
        *(("sequences", "sgd"), ("pools", "rmsprop"), ("padded", "groups")),
    ],
)
def test_a_small_net_is_the_same(net, training, dtype, device, tmp_path):
    path = recording(tmp_path / "run.trace", net, training, dtype=dtype, device=device)
    report = verify(path, port(net, training))
    report.raise_if_different()
    assert open_trace(path).run.settings["device"].startswith(device)
    assert "JAX's default on a GPU is TF32" in str(report)


@pytest.mark.parametrize(
    ("seed", "kind"),
    [
        *((0, "nnx"), (1, "linen")),
        *(pytest.param(seed, "nnx", marks=pytest.mark.long) for seed in range(2, 6)),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("model", "optimizer"),
    [("gpt", "adamw"), ("resnet", "sgd"), ("lstm-2", "adam")],
)
def test_a_model_is_the_same(model, optimizer, dtype, seed, kind, device, tmp_path):
    trio = BY_NAME[model]
    options = {"optimizer": optimizer, "dtype": dtype, "seed": seed, "device": device}
    path = recorded(tmp_path / "run.trace", trio, **options)
    verify(path, port_of(trio, kind, optimizer)).raise_if_different()


def case(mutation: Mutation) -> Any:
    marks = [] if mutation.name in QUICK else [pytest.mark.long]
    return pytest.param(mutation, id=mutation.name, marks=marks)


@pytest.mark.parametrize("mutation", [*map(case, MUTATIONS)])
def test_a_bug_is_found_at_its_stage_and_module(mutation, cuda, tmp_path):
    dtype = torch.float64 if mutation.wide else torch.float32
    net, training = mutation.net, mutation.training
    path = recording(tmp_path / "run.trace", net, training, dtype=dtype, device=cuda)
    report = verify(path, mutated(mutation), free_run=False)
    assert not report
    first = report.first
    assert (first.step, first.stage) == (mutation.step, mutation.stage), str(report)
    assert mutation.module in (None, first.module), str(report)


WIDTH = 256
"""So wide that products are computed in TF32 where they may be."""


def dense() -> nn.Module:
    """Two layers and a GELU."""
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))


class DensePort(nnx.Module):
    """The port of `dense`."""

    def __init__(self, *, approximate: bool = False) -> None:
        """Make the layers."""
        rngs = nnx.Rngs(0)
        gelu = functools.partial(nnx.gelu, approximate=approximate)
        self.layers = nnx.List([nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(2)])
        self.gelu = gelu

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``(B, WIDTH)`` to the same."""
        return self.layers[1](self.gelu(self.layers[0](x)))


def convolutions() -> nn.Module:
    """Two convolutions."""
    return nn.Sequential(nn.Conv1d(32, 64, 3), nn.GELU(), nn.Conv1d(64, 32, 3))


class ConvolutionsPort(nnx.Module):
    """The port of `convolutions`."""

    def __init__(self) -> None:
        """Make the layers."""
        rngs, rest = nnx.Rngs(0), {"kernel_size": (3,), "padding": "VALID"}
        self.layers = nnx.List(
            [nnx.Conv(32, 64, rngs=rngs, **rest), nnx.Conv(64, 32, rngs=rngs, **rest)]
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map ``(B, 32, T)`` to ``(B, 32, T - 4)``."""
        hidden = nnx.gelu(self.layers[0](x.swapaxes(1, 2)), approximate=False)
        return self.layers[1](hidden).swapaxes(1, 2)


def trained(
    path: Path,
    make: Callable[[], nn.Module],
    shape: tuple[int, ...],
    device: str,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Record some steps of training a net to return what it is given."""
    torch.manual_seed(0)
    model = make().to(device, dtype)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.01)
    with record(path, model, optimizer) as run:
        for _ in range(3):
            x = torch.randn(shape).to(device, dtype)
            with run.step(x=x):
                optimizer.zero_grad()
                outputs = model(x)
                y = x[..., : outputs.shape[-1]]
                nn.functional.mse_loss(outputs, y).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                optimizer.step()
    return path


def loss_fn(model: Any, batch: dict[str, Any]) -> Any:
    outputs = model(batch["x"])
    y = batch["x"][..., : outputs.shape[-1]]
    return jnp.mean((outputs - y) ** 2), outputs


def port_of_wide(model: nnx.Module) -> Port:
    optimizer, clip = optim.adamw(1e-3, weight_decay=0.01), clip_by_global_norm(0.1)
    rename = {"0": "layers.0", "2": "layers.1"}
    return Port(model, loss_fn, optimizer, clip=clip, rename=rename)


DENSE = (dense, (64, WIDTH))
CONVOLUTIONS = (convolutions, (16, 32, 64))


def test_products_are_in_full_and_the_default_is_not():
    draw = np.random.default_rng(0).standard_normal
    a, b = draw((512, 512), np.float32), draw((512, 512), np.float32)
    exact = a.astype(np.float64) @ b.astype(np.float64)

    def error() -> float:
        # A function of its own, as the precision is part of what is compiled.
        made = np.asarray(jax.jit(lambda a, b: a @ b)(a, b), np.float64)
        return float(np.linalg.norm(made - exact) / np.linalg.norm(exact))

    with full_products():
        assert error() < 2e-6
    if torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0):
        assert error() > 1e-5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_wide_net_is_the_same(dtype, device, tmp_path):
    path = trained(tmp_path / "run.trace", *DENSE, device, dtype)
    verify(path, port_of_wide(DensePort())).raise_if_different()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_wide_convolutions_are_the_same(dtype, device, tmp_path):
    path = trained(tmp_path / "run.trace", *CONVOLUTIONS, device, dtype)
    report = verify(path, port_of_wide(ConvolutionsPort()))
    report.raise_if_different()


def test_the_tanh_of_gelu_is_found_in_a_wide_net(device, tmp_path):
    path = trained(tmp_path / "run.trace", *DENSE, device)
    report = verify(path, port_of_wide(DensePort(approximate=True)), free_run=False)
    assert (report.first.step, report.first.stage) == (0, "activations"), report
    assert report.first.module == "2"


def test_in_tf32_which_the_user_asks_for_the_port_is_the_inaccurate_side(
    cuda, tmp_path
):
    path = trained(tmp_path / "run.trace", *DENSE, cuda)
    full = verify(path, port_of_wide(DensePort()), free_run=False)
    with jax.default_matmul_precision("tensorfloat32"):
        report = verify(path, port_of_wide(DensePort()), free_run=False)
    assert "the port loses digits that torch keeps" in report.first.detail
    assert "jax_default_matmul_precision='tensorfloat32'" in str(report)
    assert relative_noise(report) > 10 * relative_noise(full)


def relative_noise(report: Any) -> float:
    """Return how far the port's gradients are from float64."""
    [stage] = [s for s in report.stages if (s.step, s.stage) == (0, "gradients")]
    return max(tensor.port_error for tensor in stage.tensors)


def test_what_torch_computed_in_tf32_is_noted(cuda, tmp_path):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        path = trained(tmp_path / "products", *DENSE, cuda)
    finally:
        torch.set_float32_matmul_precision(before)
    report = verify(path, port_of_wide(DensePort()), free_run=False)
    assert "float32_matmul_precision was 'high'" in str(report)

    torch.backends.cudnn.allow_tf32 = True
    path = trained(tmp_path / "convolutions", *CONVOLUTIONS, cuda)
    report = verify(path, port_of_wide(ConvolutionsPort()), free_run=False)
    assert "torch computed 0, 2 in TF32" in str(report)


@pytest.mark.parametrize("net", [Net, Recurrent, Attentive])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_recorded_on_cuda_is_the_same_to_the_bit(net, optimizer, cuda, tmp_path):
    x, y = X.to(cuda), Y.to(cuda)

    def train(record_it):
        torch.manual_seed(0)
        model = net().to(cuda)
        tuned = OPTIMIZERS[optimizer](model.parameters())
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(tuned, 5)
        seen = []
        if record_it:
            with record(tmp_path, model, tuned, scheduler=scheduler) as run:
                for _ in range(3):
                    with run.step(x=x, y=y):
                        seen.append(step(model, tuned, scheduler, x, y))
            assert run.warnings == ()
        else:
            seen = [step(model, tuned, scheduler, x, y) for _ in range(3)]
        grads = [p.grad for p in model.parameters()]
        drawn = torch.rand(3), torch.rand(3, device=cuda)
        return (
            *(seen, grads, drawn, model.state_dict(), tuned.state_dict()),
            scheduler.state_dict(),
        )

    assert equal(train(True), train(False))


def test_dropout_drawn_on_cuda_is_replayed(cuda, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 4))
    model.to(cuda)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with record(tmp_path, model, optimizer) as run:
        for _ in range(2):
            x = torch.randn(16, 4, device=cuda)
            with run.step(x=x):
                optimizer.zero_grad()
                nn.functional.mse_loss(model(x), x).backward()
                optimizer.step()
    assert all(step.unexplained_draws == () for step in open_trace(tmp_path))
    rngs = nnx.Rngs(0)
    layers = nnx.Linear(4, 8, rngs=rngs), nnx.relu, nnx.Dropout(0.5, rngs=rngs)
    own = nnx.Sequential(*layers, nnx.Linear(8, 4, rngs=rngs))
    verify(tmp_path, Port(own, loss_fn, optax.sgd(0.1))).raise_if_different()


def test_jax_on_the_gpu_against_jax_on_the_cpu(tmp_path):
    [cpu, *_] = jax.devices("cpu")
    with jax.default_device(cpu):
        path = jax_runs.jax_run(tmp_path / "cpu", jax_runs.port())
        with jax.enable_x64(True):
            wide = jax_runs.port(model=in_float64(jax_runs.Net(rngs=nnx.Rngs(0))))
            exact = jax_runs.jax_run(tmp_path / "exact", wide, dtype=np.float64)
    with jax.default_matmul_precision("highest"):
        own = jax_runs.jax_run(tmp_path / "gpu", jax_runs.port())
    assert open_trace(path).run.settings["device"].startswith("cpu")
    assert open_trace(own).run.settings["device"].startswith("gpu")
    verify(path, jax_runs.port()).raise_if_different()
    compare_traces(path, own, exact=exact).raise_if_different()
    wrong = jax_runs.port(model=jax_runs.Net(rngs=nnx.Rngs(0), fault="swapped kernel"))
    assert verify(path, wrong, free_run=False).first.stage == "activations"
    with jax.default_device(cpu):
        verify(own, jax_runs.port()).raise_if_different()


def in_float64(model: nnx.Module) -> nnx.Module:
    graphdef, state = nnx.split(model)
    return nnx.merge(graphdef, jax.tree.map(lambda x: x.astype(jnp.float64), state))
