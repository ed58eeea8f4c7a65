"""The tree of modules, each with what was found of it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from jaxclip.parity._html._chain import worst
from jaxclip.parity._html._figures import brief, level
from jaxclip.parity._html._markup import Markup, el, join, name_of
from jaxclip.parity._html._summary import icon
from jaxclip.parity._verify._report._results import TensorResult

if TYPE_CHECKING:
    from jaxclip.parity._verify._report._report import Report

_STAGES = ("activations", "gradients", "update")

Found = Mapping[tuple[str, str], Sequence[TensorResult]]


@dataclass
class _Module:
    """A module in the tree.

    Attributes:
        path: Its path.
        label: The part of its path that its parent's lacks.
        type: Its class.
        own: The tensors of it alone, by stage.
        inside: The modules in it.
    """

    path: str
    label: str
    type: str
    own: dict[str, list[TensorResult]] = field(default_factory=dict)
    inside: list["_Module"] = field(default_factory=list)

    @property
    def differs(self) -> bool:
        """Whether a tensor of it, or of a module in it, differs."""
        return any(map(_failed, self.own.values())) or any(
            module.differs for module in self.inside
        )

    def within(self, stage: str) -> Iterator[TensorResult]:
        """Yield the tensors of a stage of the modules in it."""
        for module in self.inside:
            yield from module.own.get(stage, ())
            yield from module.within(stage)

    @property
    def differs_elsewhere(self) -> str:
        """The first stage in which it differs, if no figure of it is shown."""
        failed = [stage for stage, own in self.own.items() if _failed(own)]
        shown = any(stage in _STAGES for stage in failed)
        return "" if shown or not failed else failed[0]


def _failed(tensors: Sequence[TensorResult]) -> bool:
    return not all(tensor.passed for tensor in tensors)


def modules(report: "Report") -> Markup | None:
    """Build the tree of modules; None if the recording has none."""
    if report.run is None or not report.run.modules:
        return None
    root = _tree(report)
    first = report.first.module if report.first is not None else None
    heads = (el("span", stage) for stage in _STAGES)
    return el(
        "section",
        el("h2", "Modules", id="h-modules"),
        el(
            "p",
            "The worst of each module's own tensors over all steps, as times what is "
            "allowed; an outlined figure is the worst of what lies in the module.",
            class_="aside",
        ),
        el(
            "div",
            el(
                "div",
                el("span", "Module"),
                *heads,
                class_="row heads",
                aria_hidden="true",
            ),
            el("ul", _item(root, first)),
            class_="tree",
        ),
        id="modules",
        aria_labelledby="h-modules",
    )


def _tree(report: "Report") -> _Module:
    assert report.run is not None
    made: dict[str, _Module] = {}
    for record in report.run.modules:
        above = _above(record.path, made)
        label = record.path.removeprefix(f"{above.path}.") if above else record.path
        short = record.type.rpartition(".")[2]
        made[record.path] = module = _Module(record.path, label, short)
        if above is not None:
            above.inside.append(module)
        for alias in record.aliases:
            made.setdefault(alias, module)
    for stage in report.stages:
        for tensor in stage.tensors:
            if tensor.module in made:
                own = made[tensor.module].own
                own.setdefault(stage.stage, []).append(tensor)
    return next(iter(made.values()))


def _above(path: str, made: Mapping[str, _Module]) -> _Module | None:
    """Return the nearest module that a path lies in."""
    while path:
        path = path.rpartition(".")[0]
        if path in made:
            return made[path]
    return None


def _item(module: _Module, first: str | None) -> Markup:
    row = _row(module, first)
    if not module.inside:
        return el("li", el("div", *row, class_="row leaf"))
    return el(
        "li",
        el(
            "details",
            el("summary", el("span", *row, class_="row")),
            el("ul", *(_item(inner, first) for inner in module.inside)),
            open=_opened(module, first),
        ),
    )


def _opened(module: _Module, first: str | None) -> bool:
    """Say whether to show what is in a module: the way to the first divergence."""
    if not module.path or first is None:
        return not module.path
    return first.startswith(f"{module.path}.")


def _row(module: _Module, first: str | None) -> Iterator[Markup]:
    is_first = module.path == first
    elsewhere = module.differs_elsewhere
    yield el(
        "span",
        icon(not module.differs if module.own or module.inside else None),
        el("span", "differs: ", class_="hidden") if module.differs else None,
        name_of(module.label) if module.path else "model",
        el("small", module.type),
        el("em", "first divergence") if is_first else None,
        el("em", f"in {elsewhere}", class_="elsewhere") if elsewhere else None,
        class_="module first" if is_first else "module",
    )
    for stage in _STAGES:
        yield _figure(module, stage)


def _figure(module: _Module, stage: str) -> Markup:
    own = module.own.get(stage)
    found = worst([*(own or module.within(stage))])
    if found is None:
        said = el("span", f"{stage}: none", class_="hidden")
        return el("span", "·", said, class_="cell")
    verdict = "same" if found.passed else "differs"
    return el(
        "span",
        el("span", f"{stage}{'' if own else ' inside'}: ", class_="hidden"),
        brief(found.share),
        el("span", f" times what is allowed, {verdict}", class_="hidden"),
        class_=join(
            f"cell {level(found.share, found.passed)}",
            "" if found.passed else " differs",
            "" if own else " inside",
        ),
    )
