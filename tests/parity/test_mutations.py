"""Every bug that is planted in a port is found where it is."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from jaxclip.parity import verify
from tests.parity.more_nets import NETS
from tests.parity.mutations import MUTATIONS, Mutation, mutated
from tests.parity.trainings import TRAININGS, port, recording

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Record each net in each training once."""
    made: dict[tuple[str, str, bool], Path] = {}

    def get(net: str, training: str, wide: bool) -> Path:
        key = net, training, wide
        if key not in made:
            path = tmp_path_factory.mktemp("trace") / "run.trace"
            dtype = torch.float64 if wide else torch.float32
            made[key] = recording(path, net, training, dtype=dtype)
        return made[key]

    return get


def case(mutation: Mutation):
    marks = [pytest.mark.long] if mutation.long else []
    return pytest.param(mutation, id=mutation.name, marks=marks)


@pytest.mark.parametrize("mutation", [*map(case, MUTATIONS)])
def test_a_bug_is_found_at_its_stage_and_module(mutation, recorded):
    path = recorded(mutation.net, mutation.training, mutation.wide)
    report = verify(path, mutated(mutation), free_run=False)
    first = report.first
    assert first is not None, report
    found = first.step, first.stage
    assert found == (mutation.step, mutation.stage), str(report)
    assert mutation.module in (None, first.module), str(report)
    assert not report
    assert str(report).startswith("DIFFERENT")


@pytest.mark.parametrize(
    ("net", "training", "wide"),
    [
        ("images", "adamw", False),
        ("tokens", "schedule", True),
        *(
            pytest.param(net, training, wide, marks=pytest.mark.long)
            for net, training in [
                *((net, training) for net in NETS for training in ("sgd", "adamw")),
                *(("vectors", training) for training in TRAININGS),
            ]
            for wide in (False, True)
        ),
    ],
)
def test_a_port_without_a_bug_is_the_same(net, training, wide, recorded):
    report = verify(recorded(net, training, wide), port(net, training))
    report.raise_if_different()


def test_the_nets_and_trainings_are_all_in_use():
    assert {mutation.net for mutation in MUTATIONS} == NETS.keys()
    assert {mutation.training for mutation in MUTATIONS} == TRAININGS.keys()
    names = [mutation.name for mutation in MUTATIONS]
    assert len(set(names)) == len(names)
