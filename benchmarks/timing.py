"""Time calls in turns, so that a busy machine slows all of them alike."""

import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from rich.progress import track


def on_gpu() -> bool:
    """Say whether JAX computes on a GPU."""
    return jax.default_backend() == "gpu"


def torch_device() -> str:
    """Name the device on which torch is JAX's peer."""
    return "cuda" if on_gpu() else "cpu"


def calls_in_a_turn() -> int:
    """Return how many calls follow one another before they are waited for.

    A GPU computes one while Python prepares the next, as in a training loop.
    """
    return 20 if on_gpu() else 1


def wait(result: Any) -> None:
    """Wait for what was called last, in JAX or in torch."""
    jax.block_until_ready(result)
    if on_gpu():
        import torch

        torch.cuda.synchronize()


def milliseconds(
    call: Callable[[], Any],
    clock: Callable[[], float] = time.perf_counter,
    calls: int = 1,
) -> float:
    """Time one call of some that follow one another, to their last result."""
    start = clock()
    for _ in range(calls):
        result = call()
    wait(result)
    return (clock() - start) * 1e3 / calls


def in_turns(
    calls: Mapping[str, Callable[[], Any]],
    rounds: int,
    title: str,
    clock: Callable[[], float] = time.perf_counter,
    at_once: int | None = None,
) -> dict[str, np.ndarray[Any, Any]]:
    """Return the milliseconds of each call in each round.

    ``time.process_time`` for a clock counts what all threads of this process computed,
    and not what other processes did meanwhile. In its turn, a call is made ``at_once``
    times, by default `calls_in_a_turn`.
    """
    count = at_once or calls_in_a_turn()
    for call in calls.values():
        milliseconds(call)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in track(range(rounds), description=title):
        for name, call in calls.items():
            times[name].append(milliseconds(call, clock, count))
    return {name: np.array(values) for name, values in times.items()}


def ratio(times: np.ndarray[Any, Any], unit: np.ndarray[Any, Any]) -> float:
    """Return the median ratio of calls made in the same rounds."""
    return float(np.median(times / unit))


def rounded(times: np.ndarray[Any, Any]) -> str:
    """Return the median, with three digits or more."""
    median = float(np.median(times))
    places = 0 if median >= 1000 else 1 if median >= 10 else 2 if median >= 1 else 3
    return f"{median:.{places}f}"


def side_by_side(
    function: Callable[..., Any], cases: Iterable[tuple[Any, ...]]
) -> list[Any]:
    """Call a function that compiles, for several cases at a time where that is slow."""
    with ThreadPoolExecutor(8 if on_gpu() else 1) as pool:
        return [*pool.map(lambda case: function(*case), cases)]


def torch_temporary(call: Callable[[], Any]) -> str:
    """Return the megabytes that a call of torch takes for a time; on CUDA alone."""
    if not on_gpu():
        return ""
    import torch

    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return f"{(torch.cuda.max_memory_allocated() - before) / 1e6:.1f}"


def hardware() -> str:
    """Name what this runs on."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return str(device.device_kind)
    return f"CPU, {os.cpu_count()} cores, {platform.machine()}"
