"""A report as JSON."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jaxclip.parity._verify._report._results import StageResult, TensorResult

if TYPE_CHECKING:
    from jaxclip.parity._verify._report._report import Report

FORMAT = "jaxclip.parity.report"
VERSION = 1


def plain(report: "Report") -> dict[str, Any]:
    """Return the report in dicts, lists, strings and finite numbers."""
    run = report.free_run
    return {
        "format": FORMAT,
        "version": VERSION,
        "verdict": report.verdict,
        "first": None if report.first is None else _tensor(report.first),
        "last_same": report.last_same and report.last_same.name,
        "trace": report.trace,
        "dtype": report.dtype,
        "rule": report.rule,
        "steps": [*report.steps],
        "stages": [_stage(stage) for stage in report.stages],
        "free_run": run
        and {
            "passed": run.passed,
            "allowed": _number(run.allowed),
            "growth": _number(run.growth),
            "reason": run.reason,
            "steps": [_fields(step) for step in run.steps],
        },
        "warnings": [_fields(warning) for warning in report.warnings],
        "notes": [*report.notes],
        "run": report.run and _deep(report.run),
        "difference": report.difference and _deep(report.difference),
    }


def dumps(report: "Report") -> str:
    """Return the report as the text of a JSON file."""
    return json.dumps(plain(report), allow_nan=False, indent=1) + "\n"


def _stage(stage: StageResult) -> dict[str, Any]:
    return {
        "step": stage.step,
        "stage": stage.stage,
        "verdict": stage.verdict,
        "tensors": [_tensor(tensor) for tensor in stage.tensors],
        "not_compared": [_fields(left) for left in stage.not_compared],
        "notes": [*stage.notes],
        "kinks": [*stage.kinks],
    }


def _tensor(tensor: TensorResult) -> dict[str, Any]:
    own = _fields(tensor, leave_out="comparison")
    found = tensor.comparison
    return own | {
        "share": _number(tensor.share),
        "shapes": [None if shape is None else [*shape] for shape in found.shapes],
        "dtypes": [None if dtype is None else str(dtype) for dtype in found.dtypes],
        "max_ulps": found.max_ulps,
        "max_abs_diff": _number(found.max_abs_diff),
        "max_abs_index": [*found.max_abs_index],
        "max_rel_diff": _number(found.max_rel_diff),
    }


def _fields(record: Any, leave_out: str = "") -> dict[str, Any]:
    return {
        field.name: _number(getattr(record, field.name))
        for field in dataclasses.fields(record)
        if field.name != leave_out
    }


def _deep(record: Any) -> Any:
    """Return a record, and what is in it, as ``_fields`` and ``_number`` do."""
    if dataclasses.is_dataclass(record):
        names = [field.name for field in dataclasses.fields(record)]
        return {name: _deep(getattr(record, name)) for name in names}
    if isinstance(record, Mapping):
        return {key: _deep(value) for key, value in record.items()}
    if isinstance(record, tuple):
        return [*map(_deep, record)]
    return _number(record)


def _number(value: Any) -> Any:
    """Return a value, or as a string if it is a number that JSON lacks."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
