"""What needs a GPU: each file skips itself where JAX's default backend is none.

On a machine with a GPU, and jax and torch with CUDA: ``pytest tests/gpu``. Set
``XLA_PYTHON_CLIENT_PREALLOCATE=false``, so that the two share the GPU.
"""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> str:
    """Where torch computes."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    return str(request.param)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> str:
    """Torch on CUDA, deterministic."""
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    return "cuda"


@pytest.fixture(autouse=True)
def _full_products() -> Iterator[None]:
    """Keep cuDNN from TF32, its default."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before
