"""Who finds the planted bugs, and who finds some where there is none.

Held side by side, on the same recordings and the same ports:

- `verify`, as it is;
- ``numpy.testing.assert_allclose(port, torch, atol=1e-5)``, its rtol the default 1e-7;
- ``torch.testing.assert_close(port, torch)``, with its defaults for the dtype.

The last two get the arrays that `verify` compares, names and layouts mended and each
part of a step given what torch had there, in the recorded dtype. Once they compare all
of them, and once the model's output and the loss alone.

`scripts/write_detection_table.py` prints what is found into docs/verifying.md.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import torchref.rnn
from jaxclip import models
from jaxclip.models import linen
from jaxclip.parity import Port, open_trace, verify
from jaxclip.parity._verify._alignment._alignment import Alignment
from jaxclip.parity._verify._compute._bench import Bench
from jaxclip.parity._verify._compute._runs import Runs
from jaxclip.parity._verify._judge._rules import Rule
from jaxclip.parity._verify._judge._samples import Sample
from jaxclip.parity._verify._judge._stages import Comparing
from jaxclip.parity._verify._port._models import read_model
from jaxclip.parity._verify._report._results import STAGES, StageResult
from tests.parity.mutations import MUTATIONS, Mutation, mutated
from tests.parity.recordings import port_of, recorded
from tests.parity.trainings import port, recording
from tests.trios import TRIOS, VOCAB, Trio

FOUND, ELSEWHERE, MISSED = "found", "elsewhere", "missed"
VERIFY, ALLCLOSE, CLOSE = "`verify`", "`assert_allclose`", "`assert_close`"
OUTPUT = ", output and loss"
METHODS = (VERIFY, ALLCLOSE, CLOSE, ALLCLOSE + OUTPUT, CLOSE + OUTPUT)

Place = tuple[int, str, str]
"""The step, the stage and the module of a tensor."""


def all_close(port: np.ndarray, of_torch: np.ndarray) -> None:
    """Compare as NumPy does, with an atol of 1e-5."""
    np.testing.assert_allclose(port, of_torch, atol=1e-5)


def close(port: np.ndarray, of_torch: np.ndarray) -> None:
    """Compare as torch does, of which a dtype of ml_dtypes is none."""
    assert port.dtype == of_torch.dtype, "as assert_close itself wants it"
    torch.testing.assert_close(*(torch.from_numpy(a.copy()) for a in (port, of_torch)))


@dataclass(frozen=True)
class Keeping(Rule):
    """A rule that keeps what it judges."""

    samples: list[Sample] = field(default_factory=list)

    def __call__(self, sample: Sample) -> Any:
        """Keep a sample, and judge it."""
        self.samples.append(sample)
        return super().__call__(sample)


def compared(path: Path, port: Port) -> Iterator[tuple[StageResult, list[Sample]]]:
    """Yield the stages of a recording, with their arrays on both sides."""
    trace = open_trace(path)
    model = read_model(port.model)
    alignment = Alignment(model, port, trace.run, trace[0])
    runs = Runs(model, port, alignment.dropouts)
    bench = Bench(model, alignment, runs, port.clip is not None)
    for step in trace:
        rule = Keeping()
        comparing = Comparing(step, trace.run, bench, rule, draws=0)
        sides = comparing.call()
        unrecorded = comparing.unrecorded(sides)
        found = []
        for assembly in comparing.called(sides), comparing.stepped(unrecorded):
            for stage in assembly.stages():
                found.append((stage, [*rule.samples]))
                rule.samples.clear()
        yield from sorted(found, key=lambda each: STAGES.index(each[0].stage))


def first_of(
    stages: Iterable[tuple[StageResult, list[Sample]]],
    peer: Callable[[np.ndarray, np.ndarray], None],
    only: Iterable[str] = (),
) -> Place | None:
    """Return where a peer finds the first difference.

    Args:
        stages: What is compared, in order.
        peer: Raises if two arrays differ.
        only: The stages to look at; by default all.
    """
    for stage, samples in stages:
        if only and stage.stage not in only:
            continue
        held = {sample.name: sample for sample in samples}
        for tensor in stage.tensors:
            sample = held.get(tensor.name)
            try:
                if sample is None:  # one side lacks the array
                    raise AssertionError
                peer(sample.port, sample.torch)
            except AssertionError:
                return tensor.step, tensor.stage, tensor.module
    return None


def places(path: Path, port: Port) -> dict[str, Place | None]:
    """Return where each method finds the first difference of a port."""
    first = verify(path, port, free_run=False).first
    stages = [*compared(path, port)]
    ends = "output", "loss"
    return {
        VERIFY: None if first is None else (first.step, first.stage, first.module),
        ALLCLOSE: first_of(stages, all_close),
        CLOSE: first_of(stages, close),
        ALLCLOSE + OUTPUT: first_of(stages, all_close, ends),
        CLOSE + OUTPUT: first_of(stages, close, ends),
    }


def verdict(mutation: Mutation, place: Place | None) -> str:
    """Say whether a bug was found, and at its place."""
    if place is None:
        return MISSED
    step, stage, module = place
    right = (step, stage) == (mutation.step, mutation.stage)
    return FOUND if right and mutation.module in (None, module) else ELSEWHERE


def detected() -> Iterator[tuple[Mutation, dict[str, str]]]:
    """Yield each planted bug, with the verdict on each method."""
    with tempfile.TemporaryDirectory() as folder:
        for number, mutation in enumerate(MUTATIONS):
            path = recording(
                Path(folder) / f"{number}.trace",
                mutation.net,
                mutation.training,
                dtype=torch.float64 if mutation.wide else torch.float32,
            )
            found = places(path, mutated(mutation))
            yield mutation, {m: verdict(mutation, found[m]) for m in METHODS}


LENGTH, HIDDEN, RADIUS = 200, 32, 1.7
"""Of a recurrent net that amplifies rounding, as one does that is near chaos."""


class Sensitive(Trio):
    """A recurrent net whose state does not forget."""

    def torch_model(self, dtype: torch.dtype, seed: int = 7) -> Any:
        """Draw torch's own weights, but those of the state to itself."""
        torch.manual_seed(seed)
        model = self.torch()
        torch.nn.init.normal_(model.rnn.weight_hh_l0, 0, RADIUS / HIDDEN**0.5)
        return model.to(dtype)


def sensitive() -> Trio:
    """Return the net, on all sides."""
    sizes = VOCAB, HIDDEN
    return Sensitive(
        f"rnn over {LENGTH} tokens",
        lambda: torchref.rnn.RNNLM(*sizes),
        lambda **kwargs: models.RNNLM(*sizes, **kwargs),
        lambda **kwargs: linen.RNNLM(*sizes, **kwargs),
        recurrent=True,
    )


def correct_ports() -> Iterator[tuple[str, Callable[[Path], Path], Port]]:
    """Yield what to call a correct port, what records its run, and the port."""
    used = {(mutation.net, mutation.training) for mutation in MUTATIONS}
    for net, training in sorted(used):
        record = partial(recording, net=net, training=training)
        yield f"{net}, {training}", record, port(net, training)
    for trio in TRIOS:
        for optimizer in ("sgd", "adamw"):
            record = partial(recorded, trio=trio, optimizer=optimizer)
            yield f"{trio.name}, {optimizer}", record, port_of(trio, "nnx", optimizer)
    for seed in range(5):
        trio = sensitive()
        record = partial(recorded, trio=trio, length=LENGTH, seed=seed)
        yield f"{trio.name}, seed {seed}", record, port_of(trio)


def false_alarms() -> Iterator[tuple[str, dict[str, bool]]]:
    """Yield each correct port, and whether each method takes it for a wrong one."""
    for name, record, right in correct_ports():
        with tempfile.TemporaryDirectory() as folder:
            found = places(record(Path(folder) / "run.trace"), right)
        yield name, {method: found[method] is not None for method in METHODS}
