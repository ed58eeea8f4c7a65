"""A fixture that verifies a port in a test.

Enable it in a ``conftest.py``, which must lie at the root of the tests::

    pytest_plugins = ["jaxclip.parity.pytest_plugin"]

and hold a port against a recording, which may lie beside the test::

    def test_port(parity):
        parity("run.trace", make_port())

``pytest --parity-json DIR`` keeps the reports as JSON, and ``--parity-html DIR`` as
pages of HTML.
"""

import os
import re
from pathlib import Path
from typing import Any

import pytest

from jaxclip.parity import Port, Report, Trace, verify

_KINDS = {"json": "JSON", "html": "HTML"}
"""What reports are kept as, by the name of the option and of the file."""


class Parity:
    """What the fixture ``parity`` gives: a function of a recording and a port.

    Args:
        test: The test that asked for it.
    """

    def __init__(self, test: pytest.FixtureRequest) -> None:
        """Keep the test."""
        self._beside = test.path.parent
        self._name = re.sub(r"[^\w.-]+", "-", test.node.nodeid).strip("-")
        self._folders: dict[str, str | None] = {
            kind: test.config.getoption(f"--parity-{kind}") for kind in _KINDS
        }
        self._count = 0

    def __call__(
        self, trace: str | os.PathLike[str] | Trace, port: Port, **options: Any
    ) -> Report:
        """Verify a port, and fail the test with the report if anything differs.

        Args:
            trace: The recording, or its path: from where pytest runs, or from the
                folder of the test.
            port: The port.
            **options: As ``verify`` takes them.

        Returns:
            The report.

        Raises:
            ParityError: If anything differs, or there is nothing to compare.
        """
        __tracebackhide__ = True
        if not isinstance(trace, Trace) and not Path(trace).exists():
            trace = self._beside / trace
        report = verify(trace, port, **options)
        self._keep(report)
        report.raise_if_different()
        return report

    def _keep(self, report: Report) -> None:
        number = f"-{self._count}" if self._count else ""
        self._count += 1
        for kind, folder in self._folders.items():
            if folder is not None:
                path = Path(folder) / f"{self._name}{number}.{kind}"
                path.parent.mkdir(parents=True, exist_ok=True)
                save = report.save_json if kind == "json" else report.save_html
                save(path)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("jaxclip")
    for kind, name in _KINDS.items():
        group.addoption(
            f"--parity-{kind}",
            metavar="DIR",
            help=(
                "write the report of every comparison of `parity` to a folder, as "
                f"{name}"
            ),
        )


@pytest.fixture
def parity(request: pytest.FixtureRequest) -> Parity:
    """Verify a port against a recording: ``parity("run.trace", port)``."""
    return Parity(request)
