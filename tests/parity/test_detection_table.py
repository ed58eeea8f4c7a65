"""The page says of every planted bug who finds it, and that is so."""

import jax
import pytest
from scripts.write_detection_table import PAGE, main, render, section, settled

from tests.parity.detection import ELSEWHERE, FOUND, MISSED, correct_ports
from tests.parity.mutations import MUTATIONS


def written(head):
    """Return the rows of the table on the page whose first column has a heading."""
    _, _, after = section(PAGE.read_text()).partition(f"| {head} |")
    lines = after.partition("\n\n")[0].splitlines()[2:]
    return [tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in lines]


def test_every_planted_bug_has_a_row():
    rows = written("bug")
    assert [row[0] for row in rows] == [mutation.name for mutation in MUTATIONS]
    assert {verdict for row in rows for verdict in row[4:]} <= {
        *(FOUND, ELSEWHERE, MISSED)
    }
    assert {row[4] for row in rows} == {FOUND}


def test_the_page_blames_no_correct_port_for_verify():
    names = [name for name, _, _ in correct_ports()]
    assert len({*names}) == len(names)
    blamed = written("correct port")
    assert {row[0] for row in blamed} <= {*names}
    assert not any(row[1] for row in blamed)
    assert f"Of {len(names)} correct ports" in section(PAGE.read_text())


def test_the_sums_are_those_of_the_rows():
    found = [("a", "0", "loss", "", FOUND, ELSEWHERE, MISSED, FOUND, MISSED)]
    raised = [("x", "", "alarm", "", "", ""), ("y", "", "", "", "", "")]
    lines = render(found, raised).splitlines()
    assert lines[2] == "| `verify` | 1 of 1 | 1 of 1 | 0 of 2 |"
    assert lines[3] == "| `assert_allclose` | 1 of 1 | 0 of 1 | 1 of 2 |"
    assert lines[4] == "| `assert_close` | 0 of 1 | 0 of 1 | 0 of 2 |"
    assert lines[5] == "| `assert_allclose`, output and loss | 1 of 1 |  | 0 of 2 |"
    assert lines[-1] == "| x |  | alarm |  |  |  |"


def test_what_peers_make_of_correct_ports_is_not_settled():
    found = [("a", "0", "loss", "", FOUND, ELSEWHERE, MISSED, FOUND, MISSED)]
    quiet = settled(render(found, [("x", "", "", "", "", "")]))
    assert quiet == settled(render(found, [("x", "", "alarm", "alarm", "", "")]))
    assert quiet != settled(render(found, [("x", "alarm", "", "", "", "")]))
    missed = [(*found[0][:-1], FOUND)]
    assert quiet != settled(render(missed, [("x", "", "", "", "", "")]))


@pytest.mark.long
def test_the_page_is_what_is_found():
    before = jax.config.read("jax_disable_most_optimizations")
    try:
        assert main(["--check"]) == 0
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
