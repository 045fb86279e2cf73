"""HTML made so that nothing can be forgotten to be escaped: texts always are, only what `element` made is markup."""

from collections.abc import Iterable
from html import escape


class Markup(str):
    """Text that is HTML already. Only `element` and `join` make it."""

    __slots__ = ()


Child = str | int | float | None | Iterable["Child"]
_VOID = frozenset({"br", "input", "link", "meta", "hr"})


def join(children: Child) -> Markup:
    """Children as HTML: texts and numbers escaped, None left out, nested lists flattened."""
    if children is None:
        return Markup()
    if isinstance(children, Markup):
        return children
    if isinstance(children, str | int | float):
        return Markup(escape(str(children), quote=True))
    return Markup("".join(join(child) for child in children))


def element(tag: str, *children: Child, **attributes: str | float | bool | None) -> Markup:
    """An HTML or SVG element. Attribute names lose a trailing underscore (`class_`), others become hyphens; None and False are left out."""
    written = "".join(
        f" {name.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{escape(str(value), quote=True)}"')
        for name, value in attributes.items()
        if value is not None and value is not False
    )
    return Markup(f"<{tag}{written}>" if tag in _VOID else f"<{tag}{written}>{join(children)}</{tag}>")


def document(title: str, *body: Child) -> Markup:
    """A whole page with this application's style and script; nothing comes from elsewhere."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("link", rel="stylesheet", href="/assets/page.css"),
        element("link", rel="icon", href="/assets/icon.svg"),
        element("script", src="/assets/page.js", defer=True),
    )
    return Markup("<!doctype html>" + element("html", head, element("body", body), lang="en"))
