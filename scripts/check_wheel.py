"""Install the wheel alone, on every supported Python at hand, and use it.

Usage: ``python scripts/check_wheel.py DIST``, where DIST holds one wheel.
"""

import shutil
import subprocess
import sys
import tempfile
import textwrap
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
VERSIONS = ("3.11", "3.12", "3.13", "3.14")

# What someone does who has neither torch nor flax.
USE = textwrap.dedent(
    """
    import importlib.util, sys
    import jax, jax.numpy as jnp, optax
    import jaxclip

    assert "site-packages" in jaxclip.__file__, jaxclip.__file__
    for absent in ("torch", "flax", "rich", "matplotlib"):
        assert importlib.util.find_spec(absent) is None, absent

    optimizer = optax.chain(jaxclip.clip_by_global_norm(1.0), optax.sgd(1.0))
    params = {"w": jnp.zeros(2)}
    opt_state = optimizer.init(params)
    grads = {"w": jnp.array([3.0, 4.0])}
    updates, opt_state = jax.jit(optimizer.update)(grads, opt_state, params)
    norm = float(jaxclip.global_norm(updates))
    assert abs(norm - 1.0) < 1e-6, norm
    assert float(jaxclip.clip_metrics(opt_state).total_norm) == 5.0

    from jaxclip import cli
    assert cli.main(["demo"]) == 2  # says which extra to install
    """
)


def interpreters() -> list[str]:
    """Return the interpreters of the supported versions that run here."""
    found = [path for version in VERSIONS if (path := interpreter(version))]
    return found or [sys.executable]


def interpreter(version: str) -> str | None:
    """Find the interpreter of a version on the path, or among pyenv's."""
    candidates = [shutil.which(f"python{version}")]
    if shutil.which("pyenv"):
        prefix = subprocess.run(
            ["pyenv", "prefix", version], capture_output=True, text=True
        )
        candidates.append(f"{prefix.stdout.strip()}/bin/python")
    for path in candidates:
        if path and shutil.which(path):
            answer = subprocess.run([path, "-V"], capture_output=True, text=True)
            if answer.stdout.startswith(f"Python {version}."):
                return path
    return None


def check(python: str, wheel: Path, requirements: list[str], versions: str) -> None:
    """Install the wheel into a fresh environment and use it there."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([python, "-m", "venv", folder], check=True)
        inside = f"{folder}/bin/python"
        install = [inside, "-m", "pip", "install", "--quiet", "--no-compile"]
        subprocess.run([*install, str(wheel), *requirements], check=True, cwd=folder)
        subprocess.run([inside, "-c", USE], check=True, cwd=folder)
        name = subprocess.check_output([inside, "-V"], text=True).strip()
        print(f"{wheel.name} works alone on {name}, {versions}", flush=True)


def floors() -> list[str]:
    """Return the oldest versions that pyproject.toml admits."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [needed.replace(">=", "==") for needed in project["dependencies"]]


def main() -> int:
    """Check the wheel; the exit status is 0 if it works everywhere."""
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    wheels = sorted(Path(sys.argv[1]).glob("jaxclip-*.whl"))
    if len(wheels) != 1:
        print(
            f"{sys.argv[1]}: expected one wheel of jaxclip, found {len(wheels)}; "
            "empty the folder and run `make build`",
            file=sys.stderr,
        )
        return 2
    wheel = wheels[0].resolve()
    pinned = ["--constraint", str(ROOT / "constraints.txt")]
    pythons = interpreters()
    for python in pythons:
        check(python, wheel, pinned, "at the pinned versions")
    check(pythons[0], wheel, floors(), f"at the oldest versions: {floors()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
