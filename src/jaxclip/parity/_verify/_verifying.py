"""The public function: a port against a recording."""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

from jaxclip.parity._trace._reader import Trace, open_trace
from jaxclip.parity._trace._step import Step
from jaxclip.parity._verify._alignment._aligned import Aligned
from jaxclip.parity._verify._alignment._alignment import Alignment
from jaxclip.parity._verify._alignment._jax_alignment import JaxAlignment
from jaxclip.parity._verify._compute import _products
from jaxclip.parity._verify._compute._bench import Bench
from jaxclip.parity._verify._compute._precision import coarsest, is_coarse, note
from jaxclip.parity._verify._compute._runs import Runs, nested_batch
from jaxclip.parity._verify._doubt import beyond_doubt
from jaxclip.parity._verify._free_run import run_freely
from jaxclip.parity._verify._judge._rules import Rule
from jaxclip.parity._verify._judge._stages import Comparing
from jaxclip.parity._verify._kinks._watching import Watched
from jaxclip.parity._verify._port._models import read_model
from jaxclip.parity._verify._port._port import Port
from jaxclip.parity._verify._random._drawn import place_of
from jaxclip.parity._verify._report._difference import Difference
from jaxclip.parity._verify._report._report import Report
from jaxclip.parity._verify._report._results import StageResult
from jaxclip.parity._verify._report._words import words_for


def verify(
    trace: str | os.PathLike[str] | Trace,
    port: Port,
    *,
    steps: int | Iterable[int] | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    factor: float = 4.0,
    equal_nan: bool = False,
    free_run: bool = True,
    draws: int = 3,
    on_step: Callable[[int, int], object] | None = None,
) -> Report:
    """Verify that a port trains as a recorded run did; say where they part first.

    Every recorded step is computed from torch's own recorded weights and state, so
    that a fault in one step is no fault in the next; and each part of a step is given
    what torch had there: the loss function torch's weights, the clip torch's
    gradients, the optimizer torch's clipped gradients. Names and layouts are torch's.
    Then the port trains by itself from the first step.

    The tolerance is the port's own rounding noise. It is run in the recorded dtype,
    again with all that it is given but the batch changed by an ulp, and in float64, and
    torch may be ``factor`` times as far from float64 as the worst of these runs is, or
    as a floor of 4 ulps; a tensor of few elements more, as few draws say little. Both
    the L2 norm and the greatest element are asked. Products of float32 are computed in
    full precision on a GPU or a TPU, too, unless ``jax.default_matmul_precision`` or a
    ``precision=`` in the port asks for another. If the recording is in float64, the
    comparison is, and the noise is that of the port's float32 runs, scaled by the ratio
    of the two eps, and multiplied by 100: rounding is 2**29 times finer there, and a
    mistake is not.

    Where the port computes in bfloat16 or float16, whatever its parameters are in, an
    ulp of theirs says nothing of the noise: what changes is a part of them, by the last
    bit of that dtype. The run in float64 casts to nothing else, whatever a ``dtype=``
    or an ``astype`` in the port says.

    Args:
        trace: The recording, or its path.
        port: The port.
        steps: The numbers of the steps to compare, or how many of the first; by
            default all.
        rtol: A relative tolerance for all stages instead; with ``atol``.
        atol: An absolute tolerance, with ``rtol``.
        factor: How many times the noise is allowed.
        equal_nan: Whether NaN equals NaN.
        free_run: Whether to let the port train by itself, too.
        draws: How many runs with changed weights measure the noise. With fewer, small
            tensors of a correct port are more often blamed. Where what differs first
            in a step does so by up to ten times what is allowed, five times as many
            are made.
        on_step: Called after each step, with how many have been compared, and of how
            many: to show how far it is.

    Returns:
        The report; true if all that was compared is the same.

    Raises:
        ConversionError: If the recorded weights do not fit the port's model.
        ParityError: If there is nothing to compare.
        TypeError: If the model, or what the loss function returns, is of another type.
        FileNotFoundError: If there is no such recording.
        ValueError: If the recording is damaged, has no such step, or has no weights;
            or if a tolerance is none.

    Example:
        >>> import tempfile, torch
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxclip import optim
        >>> from jaxclip.parity import Port, record, verify
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> path = tempfile.mkdtemp()
        >>> with record(path, model, optimizer) as run:
        ...     x, y = torch.randn(4, 3), torch.randn(4, 1)
        ...     with run.step(x=x, y=y):
        ...         torch.nn.functional.mse_loss(model(x), y).backward()
        ...         optimizer.step()
        >>> def loss_fn(model, batch):
        ...     outputs = model(batch["x"])
        ...     return jnp.mean((outputs - batch["y"]) ** 2), outputs
        >>> linear = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
        >>> bool(verify(path, Port(linear, loss_fn, optim.sgd(0.1))))
        True
        >>> report = verify(path, Port(linear, loss_fn, optim.sgd(0.2)))
        >>> report.first.stage, report.first.hint
        ('update', 'the port has 2 times what torch has')
    """
    rule = Rule(factor, equal_nan, rtol, atol)
    if type(draws) is not int or draws < 0:
        raise ValueError(f"verify(draws={draws!r}): it must be an integer from 0 on.")
    opened = trace if isinstance(trace, Trace) else open_trace(trace)
    wanted = _wanted(opened, steps)
    first = opened[wanted[0]]
    if not first.params:
        raise ValueError(
            f"recording {str(opened.path)!r} has no weights (keep= left 'params' out); "
            "there is nothing to start from."
        )
    model = read_model(port.model)
    alignment: Aligned
    if opened.run.framework == "jax":
        alignment = JaxAlignment(model, port, first)
    else:
        model.look(port.loss_fn, nested_batch(first.batch.items()))
        alignment = Alignment(model, port, opened.run, first)
    # A recording with 64 bits drew in float64, which a run in float32 cannot.
    runs = Runs(
        *(model, port, alignment.dropouts),
        float32_draws=opened.run.settings.get("x64") == "False",
    )
    bench = Bench(model, alignment, runs, port.clip is not None)
    watched = Watched(runs)
    found: list[StageResult] = []
    failed = False
    difference: Difference | None = None
    random: set[str] = set()
    for done, index in enumerate(wanted, 1):
        step = opened[index]
        comparing = Comparing(step, opened.run, bench, rule, draws)
        compared = beyond_doubt(comparing, watched)
        if not failed:
            failed = any(stage.failures for stage in compared.stages)
            difference = compared.picture
        found += compared.stages
        random |= {*step.unexplained_draws}
        if on_step is not None:
            on_step(done, len(wanted))
    computed = coarsest(bench.runs.dtypes)
    said = str(rule)
    if is_coarse(computed) and rtol is None:
        said += f", which computes in {computed}"
    free = None
    if free_run:
        kinked = {stage.step for stage in found if stage.kinks}
        free = run_freely(bench, (opened[index] for index in wanted), factor, kinked)
    return Report(
        trace=str(opened.path),
        dtype=", ".join(opened.run.dtypes),
        rule=said,
        stages=tuple(found),
        free_run=free,
        warnings=opened.warnings,
        notes=(
            *_notes(opened, first, random, computed, draws),
            *_products.notes(opened.run, bench.runs.dtypes),
        ),
        run=opened.run,
        difference=difference,
        words=words_for(opened.run.framework),
    )


def _wanted(trace: Trace, steps: int | Iterable[int] | None) -> list[int]:
    """Return the places in the recording of the steps that are to be compared."""
    where = f"recording {str(trace.path)!r}"
    if not trace.numbers:
        raise ValueError(f"{where} has no steps: the run ended before its first.")
    if steps is None:
        return [*range(len(trace))]
    if isinstance(steps, int):
        if steps < 1:
            raise ValueError(f"verify(steps={steps}): compare 1 step at least.")
        return [*range(min(steps, len(trace)))]
    numbers: Sequence[int] = [*steps]
    missing = [number for number in numbers if number not in trace.numbers]
    if missing or not numbers:
        raise ValueError(
            f"verify(steps={numbers}): {where} has the steps "
            f"{', '.join(map(str, trace.numbers))}."
        )
    return [trace.numbers.index(number) for number in sorted({*numbers})]


def _notes(
    trace: Trace, first: Step, random: Collection[str], computed: Any, draws: int
) -> Iterator[str]:
    """Say what is to be known of the recording.

    Args:
        trace: The recording.
        first: The first step that was compared.
        random: The modules that drew random numbers that no mask explains.
        computed: The coarsest dtype in which the port computes.
        draws: In how many runs what it was given was changed.
    """
    if not trace.finished:
        yield "The run did not come to its end; the recording has the steps before."
    if random:
        why = (
            "A kernel that draws as it computes does not show them, and neither does "
            "the first step that draws after one that did not."
        )
        if not {"masks", "draws"} <= {*trace.run.keep}:
            why = "Record the run with masks and draws in keep=."
        yield (
            f"Random numbers were drawn in {', '.join(map(place_of, sorted(random)))} "
            "that are not recorded: the steps cannot be computed anew unless the port "
            f"draws the same. {why}"
        )
    if is_coarse(computed):
        kept = any(is_coarse(array.dtype) for array in first.params.values())
        yield note(computed, draws, kept=kept)
