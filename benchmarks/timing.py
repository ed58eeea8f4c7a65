"""Time calls in turns, so that a busy machine slows all of them alike."""

import os
import platform
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from rich.progress import track


def milliseconds(
    call: Callable[[], Any], clock: Callable[[], float] = time.perf_counter
) -> float:
    """Time one call, to its last result."""
    start = clock()
    jax.block_until_ready(call())
    return (clock() - start) * 1e3


def in_turns(
    calls: Mapping[str, Callable[[], Any]],
    rounds: int,
    title: str,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, np.ndarray[Any, Any]]:
    """Return the milliseconds of each call in each round.

    ``time.process_time`` for a clock counts what all threads of this process computed,
    and not what other processes did meanwhile.
    """
    for call in calls.values():
        milliseconds(call)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in track(range(rounds), description=title):
        for name, call in calls.items():
            times[name].append(milliseconds(call, clock))
    return {name: np.array(values) for name, values in times.items()}


def ratio(times: np.ndarray[Any, Any], unit: np.ndarray[Any, Any]) -> float:
    """Return the median ratio of calls made in the same rounds."""
    return float(np.median(times / unit))


def hardware() -> str:
    """Name what this runs on."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return str(device.device_kind)
    return f"CPU, {os.cpu_count()} cores, {platform.machine()}"
