"""Processes of their own: the number of JAX's devices is fixed when it starts."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def with_devices(count: int) -> dict[str, str]:
    """Return the environment of a process with several devices, flags kept."""
    flags = os.environ.get("XLA_FLAGS", "")
    count_flag = f"--xla_force_host_platform_device_count={count}"
    own = {"XLA_FLAGS": f"{flags} {count_flag}".lstrip(), "JAX_PLATFORMS": "cpu"}
    return os.environ | own


def run_python(*args: str | Path, devices: int) -> subprocess.CompletedProcess[str]:
    """Run Python in the root of the project, where JAX has several devices."""
    return subprocess.run(
        [sys.executable, *args],
        cwd=ROOT,
        env=with_devices(devices),
        capture_output=True,
        text=True,
        check=False,
    )


def run_pytest(
    file: Path, *options: str, devices: int
) -> subprocess.CompletedProcess[str]:
    """Run the tests of a file likewise."""
    pytest = "-m", "pytest", "-q", "-p", "no:cacheprovider"
    return run_python(*pytest, file, *options, devices=devices)
