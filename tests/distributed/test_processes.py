"""Clips over two processes, as on two hosts, next to torch's on DTensors."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.contract.cases import CASES
from tests.processes import ROOT, with_devices

LOOPBACK = "127.0.0.1"

pytestmark = pytest.mark.long


def free_port():
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        return listener.getsockname()[1]


def run_both(command, environment):
    """Run a command twice at once, told which it is; return what each printed."""
    processes = [
        subprocess.Popen(
            command(rank),
            cwd=ROOT,
            env=os.environ | environment(rank),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        printed = [process.communicate(timeout=900)[0] for process in processes]
    finally:
        # If one fails, the other may wait for it for ever.
        for process in processes:
            process.kill()
    for process, output in zip(processes, printed, strict=True):
        assert process.returncode == 0, output
    return printed


@pytest.fixture(scope="module")
def of_jax(tmp_path_factory):
    out = tmp_path_factory.mktemp("jax") / "clipped.npz"
    coordinator = f"{LOOPBACK}:{free_port()}"
    file = str(Path(__file__).with_name("jax_process.py"))
    printed = run_both(
        lambda rank: [
            *(sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"),
            file,
        ],
        lambda rank: {
            "JAXCLIP_PROCESS": str(rank),
            "JAXCLIP_COORDINATOR": coordinator,
            "JAXCLIP_OUT": str(out),
            **with_devices(4),
        },
    )
    return printed, out


def test_every_transformation_is_as_in_one_process(of_jax):
    printed, _ = of_jax
    for output in printed:
        passed = re.search(r"^(\d+) passed", output, re.MULTILINE)
        assert passed is not None, output
        assert int(passed[1]) == 2 * len(CASES) + 2


def test_norm_and_gradients_are_those_of_torch_on_dtensors(of_jax, tmp_path):
    out = tmp_path / "clipped.npz"
    module = "tests.distributed.torch_process"
    run_both(
        lambda rank: [
            *(sys.executable, "-m", module, str(rank), str(tmp_path / "store")),
            str(out),
        ],
        lambda rank: {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
    )
    with np.load(of_jax[1]) as got, np.load(out) as expected:
        assert sorted(got) == sorted(expected) == ["b", "total_norm", "v", "w"]
        for name in got:
            # Four sums in another order than torch's two.
            np.testing.assert_allclose(got[name], expected[name], rtol=1e-6)
