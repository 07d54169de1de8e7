"""Prints what AT-SPI sees: ``--tree`` the accessibility tree as XML, ``--terminal`` a terminal's text.

A program of its own, started by ``osworld_api.py``. Tree and attributes as in OSWorld's server.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from typing import Any

import pyatspi

DEPTH, WIDTH = 50, 1024
NAMESPACES = {
    "st": "https://accessibility.ubuntu.example.org/ns/state",
    "attr": "https://accessibility.ubuntu.example.org/ns/attributes",
    "cp": "https://accessibility.ubuntu.example.org/ns/component",
    "txt": "https://accessibility.ubuntu.example.org/ns/text",
}


def node_xml(node: Any, depth: int = 0) -> ET.Element:
    """One accessible object and those below it."""
    role = node.getRoleName().replace(" ", "-") or "unknown"
    element = ET.Element(role, {"name": node.name or ""})
    for state in node.getState().getStates():
        element.set(f"{{{NAMESPACES['st']}}}{pyatspi.stateToString(state).replace(' ', '-')}", "true")
    for attribute in node.getAttributes():
        key, _, value = attribute.partition(":")
        if key.isidentifier():
            element.set(f"{{{NAMESPACES['attr']}}}{key}", value)
    if "Component" in pyatspi.listInterfaces(node):
        box = node.queryComponent().getExtents(pyatspi.XY_SCREEN)
        element.set(f"{{{NAMESPACES['cp']}}}screencoord", str((box.x, box.y)))
        element.set(f"{{{NAMESPACES['cp']}}}size", str((box.width, box.height)))
    text = node_text(node)
    if text:
        element.text = text
    if depth < DEPTH:
        for index in range(min(node.childCount, WIDTH)):
            child = node.getChildAtIndex(index)
            if child is not None:
                element.append(node_xml(child, depth + 1))
    return element


def node_text(node: Any) -> str:
    """The object's text without the marks of embedded objects; empty if it has none."""
    if "Text" not in pyatspi.listInterfaces(node):
        return ""
    text = node.queryText()
    found = text.getText(0, text.characterCount)
    return "".join(c for c in found if c in "\n\t" or c.isprintable()).replace("\ufffc", "")


def terminal_text() -> str:
    """Text of the active gnome-terminal; empty if there is none."""
    for application in pyatspi.Registry.getDesktop(0):
        if application is None or application.getRoleName() != "application":
            continue
        if application.name != "gnome-terminal-server":
            continue
        for frame in application:
            if frame.getState().contains(pyatspi.STATE_ACTIVE):
                found = pyatspi.findDescendant(frame, lambda n: n.getRoleName() == "terminal")
                if found is not None:
                    return node_text(found).rstrip()
    return ""


def main() -> None:
    """Entry point."""
    if sys.argv[1] == "--terminal":
        print(terminal_text(), end="")
        return
    for prefix, url in NAMESPACES.items():
        ET.register_namespace(prefix, url)
    root = ET.Element("desktop-frame")
    for application in pyatspi.Registry.getDesktop(0):
        if application is not None:
            root.append(node_xml(application))
    print(ET.tostring(root, encoding="unicode"), end="")


if __name__ == "__main__":
    main()
