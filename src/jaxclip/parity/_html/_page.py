"""The whole page."""

import base64
import hashlib
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from jaxclip.parity._html._chain import chain
from jaxclip.parity._html._markup import Markup, el
from jaxclip.parity._html._modules import modules
from jaxclip.parity._html._picture import picture
from jaxclip.parity._html._remarks import kinks, mistakes, not_compared, notes
from jaxclip.parity._html._summary import facts, first_divergence, verdict
from jaxclip.parity._html._tensors import tensors
from jaxclip.parity._html._trajectory import trajectory

if TYPE_CHECKING:
    from jaxclip.parity._verify._report._report import Report

_ICONS = Markup(
    '<svg hidden width="0" height="0" aria-hidden="true">'
    '<symbol id="tick" viewBox="0 0 16 16"><path d="M3 8.5l3.5 3.5L13 4.5"/></symbol>'
    '<symbol id="cross" viewBox="0 0 16 16"><path d="M4 4l8 8M12 4l-8 8"/></symbol>'
    '<symbol id="dash" viewBox="0 0 16 16"><path d="M4 8h8"/></symbol>'
    "</svg>"
)


def page(report: "Report") -> str:
    """Return the page: the same for the same report."""
    sections = {
        "first": ("Verdict", first_divergence(report)),
        "facts": ("Facts", facts(report)),
        "stages": ("Stages", chain(report)),
        "modules": ("Modules", modules(report)),
        "tensors": ("Tensors", tensors(report)),
        "picture": ("How it differs", picture(report)),
        "free": ("Free run", trajectory(report)),
        "kinks": ("Kinks", kinks(report)),
        "mistakes": ("Mistakes", mistakes(report)),
        "left": ("Not compared", not_compared(report)),
        "notes": ("Notes", notes(report)),
    }
    links = (
        el("li", el("a", label, href=f"#{key}"))
        for key, (label, section) in sections.items()
        if section
    )
    body = el(
        "body",
        el("a", "Skip to the report", href="#main", class_="skip"),
        _ICONS,
        el(
            "header",
            verdict(report),
            el("nav", el("ul", *links), aria_label="Sections"),
        ),
        el("main", *(section for _, section in sections.values()), id="main"),
        el("script", Markup(_resource("report.js"))),
    )
    title = f"{report.verdict.capitalize()}: {report.trace}"
    return f"<!DOCTYPE html>\n{el('html', _head(title), body, lang='en')}\n"


def _head(title: str) -> Markup:
    style, script = _resource("report.css"), _resource("report.js")
    # Nothing is fetched, and no other style or script than these two takes effect.
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; "
        f"style-src '{_digest(style)}'; script-src '{_digest(script)}'"
    )
    return el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("meta", name="referrer", content="no-referrer"),
        el("title", title),
        el("style", Markup(style)),
    )


@cache
def _resource(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
