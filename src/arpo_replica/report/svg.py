"""Matplotlib's SVG -> SVG that may stand inside the page.

The page's Content-Security-Policy allows no style attributes, several figures share one document, and
colours follow the reader's light or dark mode. So: no XML prologue, no style element, declarations
become attributes, ids get a prefix, and palette colours become classes.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree

SVG = "http://www.w3.org/2000/svg"
XLINK = "{http://www.w3.org/1999/xlink}href"
DROPPED = {"font", "font-family", "font-style", "font-variant", "font-stretch"}
REFERENCE = re.compile(r"url\(#([^)]+)\)")

PALETTE = {
    "ink": "#1d2433",
    "muted": "#5b6475",
    "grid": "#e3dfd6",
    "base": "#6e6e73",
    "grpo": "#0072b2",
    "arpo": "#c44e00",
    "other1": "#00795a",
    "other2": "#a8487f",
    "other3": "#7a6a00",
    "shade1": "#31587a",
    "shade2": "#6f93b0",
    "shade3": "#a9bfd0",
    "shade4": "#8a7f5c",
    "shade5": "#b9b08f",
    "shade6": "#d9d3be",
}
"""Name -> colour in light mode; report.css has the dark twin under ``--<name>``."""
NAMES = {colour: name for name, colour in PALETTE.items()}


def embed(svg: str, prefix: str, title: str, description: str) -> str:
    """The figure as an element for the page; ``title`` and ``description`` are its text alternative."""
    ElementTree.register_namespace("", SVG)
    root = ElementTree.fromstring(svg)  # noqa: S314 - our own matplotlib wrote it
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}style", f"{{{SVG}}}metadata"):
                parent.remove(child)
    for element in root.iter():
        _declarations_to_attributes(element)
        _prefix_ids(element, prefix)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("class", "figure-svg")
    root.set("role", "img")
    root.set("aria-labelledby", f"{prefix}-title {prefix}-desc")
    for index, (tag, text) in enumerate((("title", title), ("desc", description))):
        label = ElementTree.Element(f"{{{SVG}}}{tag}", {"id": f"{prefix}-{tag}"})
        label.text = text
        root.insert(index, label)
    return ElementTree.tostring(root, encoding="unicode")


def _declarations_to_attributes(element: ElementTree.Element) -> None:
    classes = []
    for declaration in element.attrib.pop("style", "").split(";"):
        name, _, value = declaration.partition(":")
        name, value = name.strip(), value.strip()
        if name and name not in DROPPED:
            element.set(name, value)
    for name, letter in (("fill", "f"), ("stroke", "s")):
        colour = NAMES.get(element.get(name, "").lower())
        if colour:
            classes.append(f"{letter}-{colour}")
    if classes:
        element.set("class", " ".join(classes))


def _prefix_ids(element: ElementTree.Element, prefix: str) -> None:
    if "id" in element.attrib:
        element.set("id", f"{prefix}-{element.attrib['id']}")
    target = element.attrib.pop(XLINK, None)
    if target is not None:
        element.set("href", f"#{prefix}-{target.removeprefix('#')}")
    for name, value in element.attrib.items():
        if "url(#" in value:
            element.set(name, REFERENCE.sub(rf"url(#{prefix}-\1)", value))
