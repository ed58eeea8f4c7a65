"""The fixture that verifies a port in a test."""

import json
import re

import pytest

from jaxclip.parity import ParityError
from jaxclip.parity.pytest_plugin import Parity
from tests.parity.test_verify import WRONG, linear_run, make_right


class Config:
    """What the fixture asks pytest's configuration for."""

    def __init__(self, **folders):
        """Keep the folder of each kind of report."""
        self.folders = folders

    def getoption(self, name):
        kind = name.removeprefix("--parity-")
        assert kind in ("json", "html")
        return self.folders.get(kind)


class Request:
    """A test that asks for the fixture."""

    def __init__(self, path, **folders):
        """Keep the path of the test."""
        self.path, self.config, self.node = path, Config(**folders), self
        self.nodeid = "tests/test_port.py::test_port[a/b]"


def without_icons(page):
    return re.sub("<svg.*?</svg>", "", page)


def test_a_recording_beside_the_test_is_found(tmp_path):
    linear_run(tmp_path / "run.trace", steps=1)
    folders = {"json": tmp_path / "reports", "html": tmp_path / "pages"}
    parity = Parity(Request(tmp_path / "test_port.py", **folders))
    assert parity("run.trace", make_right(), free_run=False).passed
    with pytest.raises(ParityError, match="First divergence: step 0, update"):
        parity("run.trace", WRONG, free_run=False)
    verdicts = {
        path.name: json.loads(path.read_text())["verdict"]
        for path in (tmp_path / "reports").iterdir()
    }
    assert verdicts == {
        "tests-test_port.py-test_port-a-b.json": "same",
        "tests-test_port.py-test_port-a-b-1.json": "different",
    }
    titles = {
        path.name: "<h1><span>Different" in without_icons(path.read_text())
        for path in (tmp_path / "pages").iterdir()
    }
    assert titles == {
        "tests-test_port.py-test_port-a-b.html": False,
        "tests-test_port.py-test_port-a-b-1.html": True,
    }
