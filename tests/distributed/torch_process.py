"""One of two torch processes that share DTensors; run by `test_processes`.

Usage: ``python -m tests.distributed.torch_process RANK STORE OUT``: the number of the
process, a file by which the two find each other, and one for the clipped gradients.
"""

import sys

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from tests.distributed.gradients import GRADS, MAX_NORM

# What `jax_process` shards over both axes of its mesh.
PLACEMENTS = {"w": Shard(0), "v": Shard(1), "b": Replicate()}


def main(rank: int, store: str, out: str) -> None:
    """Clip the gradients; the first process writes what became of them."""
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2
    )
    mesh = init_device_mesh("cpu", (2,))
    params = {}
    for name, grad in GRADS.items():
        placed = [PLACEMENTS[name]]
        zeros = distribute_tensor(torch.zeros(grad.shape), mesh, placed)
        params[name] = torch.nn.Parameter(zeros)
        params[name].grad = distribute_tensor(torch.from_numpy(grad), mesh, placed)
    total_norm = torch.nn.utils.clip_grad_norm_(params.values(), MAX_NORM)
    whole = {name: param.grad.full_tensor() for name, param in params.items()}
    whole["total_norm"] = total_norm.full_tensor()
    if rank == 0:
        np.savez(out, **{name: tensor.numpy() for name, tensor in whole.items()})
    # Neither leaves while the other may still write to it.
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
