"""Reports that no run was needed for: of any size, and with any names."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxclip.parity import Difference, LoopWarning, ModuleRecord, Report, Run
from jaxclip.parity._verify._compute._errors import Error
from jaxclip.parity._verify._free_run import FreeRun, FreeStep
from jaxclip.parity._verify._judge._judging import judged
from jaxclip.parity._verify._judge._picture import pictured
from jaxclip.parity._verify._judge._rules import Rule
from jaxclip.parity._verify._judge._samples import Sample
from jaxclip.parity._verify._report._results import (
    STAGES,
    NotCompared,
    StageResult,
    TensorResult,
)

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"'><svg/onload=alert(1)>&amp;&lt;",
    "<!--<script>",
    "]]>{{7*7}}${7*7}",
    "\u202eevil.exe\u2066",
    "\u05e9\u05dc\u05d5\u05dd.\u0645\u0631\u062d\u0628\u0627",
    "\u5c64.\u91cd\u307f \U0001f9ea \u00e9\u0301",
    "nul\0 bell\a esc\x1b newline\n",
    "lonely \ud800 surrogate",
)
"""Names that break pages that take names for HTML."""


def sample(name: str, module: str, *, wrong: float = 0.0, shape=(6, 8), seed=0):
    """Return a tensor, of which an element of the port's is wrong by something."""
    rng = np.random.default_rng(seed)
    exact = rng.normal(size=shape)
    torch = exact.astype(np.float32)
    # Rounded to a coarser grid, as if many operations had been rounded.
    ports = [
        (exact * (1 + 2e-7 * rng.normal(size=shape))).astype(np.float32)
        for _ in range(4)
    ]
    port = exact.copy()
    for own in (port, *ports):
        own.flat[-1] += wrong
    draws = tuple(Error.of(own, port) for own in ports[1:])
    return Sample(name, module, torch, ports[0], port, draws=draws)


def run_of(modules: list[tuple[str, str]], **changes: Any) -> Run:
    """Return what holds for a run of a model with some modules, ``(path, type)``."""
    given: dict[str, Any] = {
        "framework": "torch",
        "versions": {"torch": "2.13.0", "python": "3.12.1"},
        "settings": {},
        "dtypes": ("float32",),
        "modules": tuple(ModuleRecord(*each, (), ()) for each in modules),
        "tied": {},
        "frozen": (),
        "optimizer": "torch.optim.adamw.AdamW",
        "groups": ((),),
        "schedulers": (),
        "keep": STAGES,
        "every": 1,
    }
    return Run(**(given | changes))


def hostile() -> Report:
    """Return a report in which all that is said tries to be markup."""
    rule = Rule()
    modules = [("", HOSTILE[0])]
    stages, difference = [], None
    names = dict.fromkeys(name.replace(".", "\u2024") for name in HOSTILE)
    for number, name in enumerate(names):
        modules.append((name, f"torch.{name}"))
        own = sample(f"{name}.weight", name, wrong=1e-3 * number, seed=number)
        result = judged(number, "activations", own, rule)
        result = dataclasses.replace(result, detail=name, hint=f"hint {name}")
        stages.append(
            StageResult(
                *(number, "activations", (result,)),
                (NotCompared(name, f"because {name}"),),
                (f"note {name}",),
                (f"kink {name}",),
            )
        )
        if not result.passed and difference is None:
            difference = pictured(own, rule)
    steps = tuple(
        FreeStep(number, 1.0, 1.5, 1e-3, 1e-7, 1e4, name, True, False)
        for number, name in enumerate(names)
    )
    return Report(
        trace=f"/tmp/{HOSTILE[0]}/{HOSTILE[5]}",
        dtype=f"float32 {HOSTILE[1]}",
        rule=HOSTILE[2],
        stages=tuple(stages),
        free_run=FreeRun(steps, 1000.0, HOSTILE[0]),
        warnings=tuple(LoopWarning(n, n, None) for n in HOSTILE),
        notes=HOSTILE,
        run=run_of(
            modules,
            versions={n: n for n in HOSTILE},
            optimizer=HOSTILE[0],
            schedulers=HOSTILE,
        ),
        difference=difference,
    )


def large(tensors: int = 2000, steps: int = 10, *, wrong: bool = True) -> Report:
    """Return a report of a deep model, a layer of which is wrong from then on."""
    rule = Rule()
    layers = tensors // 20
    paths = [("", "Net"), ("layers", "ModuleList")]
    for layer in range(layers):
        paths.append((f"layers.{layer}", "Block"))
        paths += [(f"layers.{layer}.{name}", "Linear") for name in "abcd"]
    modules = [path for path, _ in paths if path.count(".") == 2]
    right = [judged(0, "loss", sample("", "", seed=s), rule) for s in range(20)]
    bad = sample("layers.7.c", "layers.7.c", wrong=1e-2, shape=(40, 96, 33))
    worse = judged(0, "loss", bad, rule)
    per_stage = {
        "activations": [(path, path) for path in modules],
        "gradients": [(f"{p}.{k}", p) for p in modules for k in ("weight", "bias")],
        "update": [(f"{p}.{k}", p) for p in modules for k in ("weight", "bias")],
    }

    def results(step: int, stage: str) -> Iterator[TensorResult]:
        for number, (name, module) in enumerate(per_stage[stage]):
            kind = right[(number + step) % len(right)]
            if wrong and stage == "activations" and name >= "layers.7.c":
                kind = worse
            detail = f"{kind.detail}, {step}.{number}"  # as good as all are unique
            yield dataclasses.replace(
                kind, step=step, stage=stage, name=name, module=module, detail=detail
            )

    return Report(
        trace="large.trace",
        dtype="float32",
        rule=str(rule),
        stages=tuple(
            StageResult(step, stage, tuple(results(step, stage)))
            for step in range(steps)
            for stage in per_stage
        ),
        run=run_of(paths),
        difference=pictured(bad, rule) if wrong else None,
    )


def at_kinks(report: Report, *kinks: str) -> Report:
    """Return a report in which rounding decided otherwise in the first gradients."""
    first, *_ = report.of_stage("gradients")
    stages = [
        dataclasses.replace(stage, kinks=kinks) if stage is first else stage
        for stage in report.stages
    ]
    return dataclasses.replace(report, stages=tuple(stages))


def picture_of(torch: np.ndarray, port: np.ndarray, rule: Rule) -> Difference | None:
    """Draw how two arrays differ."""
    wide = port.astype(np.float64)
    return pictured(Sample("x", "", torch, port, wide), rule)
