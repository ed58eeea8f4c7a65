"""Write what finds planted bugs: ``python scripts/write_detection_table.py [--check]``.

Every bug of `tests.parity.mutations` is planted and looked for, and correct ports are
held against their runs, as `tests.parity.detection` does it; docs/verifying.md has the
outcome. It takes some twenty minutes. With ``--check`` nothing is written, and the exit
status says whether the page is current, but for which correct ports the peers blame:
that depends on how a processor rounds.
"""

import difflib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.progress import track

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "verifying.md"
START, END = "<!-- detection: start -->\n", "\n<!-- detection: end -->"

Rows = list[tuple[str, ...]]


def bugs() -> Rows:
    """Return a row for each planted bug: its place, and each method's verdict."""
    from tests.parity.detection import METHODS, detected
    from tests.parity.mutations import MUTATIONS

    rows = []
    for mutation, verdicts in track(detected(), "Bugs", total=len(MUTATIONS)):
        found = [verdicts[method] for method in METHODS]
        rows.append((mutation.name, *shown_place(mutation), *found))
    return rows


def shown_place(mutation: object) -> tuple[str, str, str]:
    """Return the step, the stage and the module where a bug is to be found."""
    step, stage, module = (getattr(mutation, n) for n in ("step", "stage", "module"))
    return str(step), stage, f"`{module}`" if module else ""


def alarms() -> Rows:
    """Return a row for each correct port: which method takes it for a wrong one."""
    from tests.parity.detection import METHODS, correct_ports, false_alarms

    total = sum(1 for _ in correct_ports())
    return [
        (name, *("alarm" if raised[method] else "" for method in METHODS))
        for name, raised in track(false_alarms(), "Correct ports", total=total)
    ]


def summary(found: Rows, raised: Rows) -> Rows:
    """Return a row for each method: how many it found, and how many it blamed."""
    from tests.parity.detection import FOUND, METHODS, MISSED

    rows: Rows = [
        ("", "bugs found", "at their place", "correct ports blamed"),
        ("---",) * 4,
    ]
    for column, method in enumerate(METHODS):
        verdicts = [row[4 + column] for row in found]
        blamed = [row[1 + column] for row in raised]
        stages_alone = "," in method
        rows.append(
            (
                method,
                f"{sum(v != MISSED for v in verdicts)} of {len(verdicts)}",
                "" if stages_alone else f"{verdicts.count(FOUND)} of {len(verdicts)}",
                f"{sum(map(bool, blamed))} of {len(blamed)}",
            )
        )
    return rows


def render(found: Rows, raised: Rows) -> str:
    """Return what belongs between the markers."""
    from tests.parity.detection import METHODS

    head: Rows = [("bug", "step", "stage", "module", *METHODS), ("---",) * 9]
    blamed = [row for row in raised if any(row[1:])]
    quiet: Rows = [("correct port", *METHODS), ("---",) * 6, *blamed]
    return "\n\n".join(
        [
            table(summary(found, raised)),
            f"The {len(found)} bugs, and where they are:",
            table([*head, *found]),
            f"Of {len(raised)} correct ports these were blamed:",
            table(quiet),
        ]
    )


def table(rows: Rows) -> str:
    """Return rows as Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def section(text: str) -> str:
    """Return what stands between the markers."""
    if text.count(START) != 1 or text.count(END) != 1:
        raise ValueError(f"{PAGE.name}: expected {START.strip()} and its end, once.")
    return text.partition(START)[2].partition(END)[0]


def settled(text: str) -> str:
    """Return the tables without what the peers make of correct ports."""
    tables, head, blamed = text.partition("| correct port |")
    lines = [
        re.sub(r" \| \d+ of \d+ \|$", "", line)
        if line.startswith("| `assert")
        else line
        for line in tables.splitlines()
    ]
    first, *rows = f"{head}{blamed}".splitlines() or [""]
    lines += [first] if first else []
    lines += [row for row in rows if row.split("|")[2].strip()]
    return "\n".join(lines)


def main(arguments: Sequence[str], page: Path = PAGE) -> int:
    """Write the tables, or say whether they are current."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)  # compiles sooner
    new = render(bugs(), alarms())
    text = page.read_text()
    old = section(text)
    if "--check" in arguments:
        old, new = map(settled, (old, new))
        if old != new:
            changes = difflib.unified_diff(
                *(old.splitlines(), new.splitlines(), page.name, "found"),
                n=0,
                lineterm="",
            )
            print(
                *changes,
                f"{page.name} is out of date: run "
                "python scripts/write_detection_table.py",
                sep="\n",
                file=sys.stderr,
            )
        return int(old != new)
    written = page.with_suffix(".new")
    written.write_text(text.replace(f"{START}{old}{END}", f"{START}{new}{END}"))
    os.replace(written, page)
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    raise SystemExit(main(sys.argv[1:]))
