"""Building HTML: what is not markup already is escaped, and cannot be forgotten."""

import html
import json
from typing import Any


class Markup(str):
    """Text that is HTML, and stands in HTML as it is."""

    __slots__ = ()


VOID = frozenset({"br", "col", "input", "link", "meta"})
"""Elements that hold nothing and have no end tag."""


def el(name: str, /, *children: str | None, **attributes: str | int | bool) -> Markup:
    """Build an element.

    Args:
        name: Its name.
        *children: What it holds: markup, or text, which is escaped.
        **attributes: A trailing ``_`` is dropped and another ``_`` is a hyphen:
            ``class_=``, ``aria_label=``. True is an attribute without a value, and
            False none; nor is a class of no name.

    Example:
        >>> el("p", "1 < 2, ", el("b", "surely"), class_="said", hidden=True)
        '<p class="said" hidden>1 &lt; 2, <b>surely</b></p>'
    """
    tag = [name]
    for key, value in attributes.items():
        if value is False or (key == "class_" and not value):
            continue
        attribute = key.rstrip("_").replace("_", "-")
        tag.append(
            attribute if value is True else f'{attribute}="{escaped(str(value))}"'
        )
    start = Markup(f"<{' '.join(tag)}>")
    return start if name in VOID else Markup(f"{start}{join(*children)}</{name}>")


def join(*parts: str | None) -> Markup:
    """Put markup and text one after another."""
    return Markup("".join(escaped(part) for part in parts if part))


def escaped(text: str) -> Markup:
    """Return text as it stands in HTML, and markup as it is.

    Example:
        >>> escaped('<script>"é"')
        '&lt;script&gt;&quot;é&quot;'
        >>> escaped(escaped("<"))
        '&lt;'
    """
    if isinstance(text, Markup):
        return text
    return Markup(html.escape(visible(text)))


def visible(text: str) -> str:
    r"""Show characters that HTML does not allow, or that cannot be seen, as escapes.

    Example:
        >>> visible("a\0b \ud800 \u202e.")
        'a\\x00b \\ud800 \\u202e.'
    """
    if text.isprintable():
        return text
    return "".join(
        char
        if char.isprintable() or char in " \n\t\u200c\u200d"
        else char.encode("unicode_escape").decode()
        for char in text
    )


def data(value: Any, **attributes: str) -> Markup:
    r"""Build a block of JSON that no string in it can end.

    Example:
        >>> data(["</script>"], id="data")
        '<script type="application/json" id="data">["\\u003c/script>"]</script>'
    """
    # ASCII, where all but the end of the element is harmless.
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return el(
        "script",
        Markup(text.replace("<", "\\u003c")),
        type="application/json",
        **attributes,
    )


def name_of(text: str) -> Markup:
    """Build the name of something, which may be of any script and direction."""
    return el("bdi", text, class_="name")
