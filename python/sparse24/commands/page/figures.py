"""SVG that goes into a page: checked, without what only a file of its own needs, its names made unique."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator

#: Elements that run, or bring in, something.
_FORBIDDEN = {"script", "foreignObject", "iframe", "image", "a", "animate", "set", "handler"}
_REFERENCE = re.compile(r"url\(\s*['\"]?#([^)'\"]+)['\"]?\s*\)")
#: Of the many digits of a coordinate, those that can be seen.
_DECIMALS = re.compile(r"(\d\.\d\d)\d+")
_NAMESPACE = "http://www.w3.org/2000/svg"
_GREY = "#767d86"  # as far from white as from black
_LOADS = re.compile(r"url\(\s*['\"]?(?!#)|@import|https?:|javascript:", re.IGNORECASE)


def inlined(svg: str, prefix: str, label: str) -> str:
    """``svg`` as an element of a page.

    Args:
        svg: a whole document or an element.
        prefix: of the ids that stay; two drawings of a page may have the same.
        label: what it shows, for those who do not see it.

    Raises:
        ValueError: it is no SVG, or it would load or run something.
    """
    root = _bare(svg, prefix)
    for name in (
        "color",
        "height",
        "version",
        "width",
    ):  # the page gives it a size, and the colour of its text
        root.attrib.pop(name, None)
    root.attrib.update({"role": "img", "aria-label": label})
    return ET.tostring(root, encoding="unicode")


def tidied(svg: str, ink: str) -> str:
    """A drawing of matplotlib's as a file of its own: smaller, and legible on any ground.

    Args:
        svg: a whole document.
        ink: the colour of text and axes, which becomes that of the text around the drawing, where it is put
            into a page; elsewhere a grey.
    """
    root = _bare(svg, "")
    for element in root.iter():
        for name, value in element.attrib.items():
            element.set(name, _DECIMALS.sub(r"\1", value.replace(ink, "currentColor")))
        element.text, element.tail = ((each or "").strip() or None for each in (element.text, element.tail))
    for name in ("height", "version", "width"):
        root.attrib.pop(name, None)
    # What matplotlib says in a style for everything, which in a page would be everything of the page.
    _drop(root, "style")
    root.attrib.update({"xmlns": _NAMESPACE, "color": _GREY, "stroke-linejoin": "round"})
    return ET.tostring(root, encoding="unicode") + "\n"


def _bare(svg: str, prefix: str) -> ET.Element:
    """The checked element, without namespaces, metadata, and ids that nothing refers to."""
    root = _parsed(svg)
    _drop(root, "metadata")
    for element in root.iter():
        _check(element)
    used = set(_references(root))
    for element in root.iter():
        _rename(element, used, prefix)
    return root


def _parsed(svg: str) -> ET.Element:
    if "<!ENTITY" in svg:
        raise ValueError("an SVG with entities of its own cannot be put into a page: write them out")
    try:
        root = ET.fromstring(svg)
    except ET.ParseError as error:
        raise ValueError(f"this is no SVG: {error}; it begins with {svg[:40]!r}") from None
    if _local(root.tag) != "svg" or "viewBox" not in root.attrib:
        raise ValueError(f"this is no SVG: expected an element svg with a viewBox, found {_local(root.tag)}")
    return root


def _check(element: ET.Element) -> None:
    """Nothing that a drawing loads or runs."""
    tag = _local(element.tag)
    if tag in _FORBIDDEN:
        raise ValueError(f"a drawing may not hold an element {tag}: pages load and run nothing")
    if tag == "style" and _LOADS.search(element.text or ""):
        raise ValueError("a drawing's style may not load anything: pages load and run nothing")
    for key, value in element.attrib.items():
        name = _local(key)
        is_link = name == "href" and not value.startswith("#")
        if name.lower().startswith("on") or is_link or _LOADS.search(value):
            raise ValueError(f"a drawing may not hold {name}={value[:60]!r}: pages load and run nothing")


def _drop(root: ET.Element, tag: str) -> None:
    for parent in list(root.iter()):
        for child in [each for each in parent if _local(each.tag) == tag]:
            parent.remove(child)


def _references(root: ET.Element) -> Iterator[str]:
    for element in root.iter():
        for key, value in element.attrib.items():
            if _local(key) == "href":
                yield value.removeprefix("#")
            yield from _REFERENCE.findall(value)


def _rename(element: ET.Element, used: set[str], prefix: str) -> None:
    """Within HTML names have no namespace, and ids are unique in the page; those of no use go."""
    element.tag = _local(element.tag)
    attributes = {_local(key): value for key, value in element.attrib.items()}
    if attributes.get("id") in used:
        attributes["id"] = prefix + attributes["id"]
    else:
        attributes.pop("id", None)
    if "href" in attributes:
        attributes["href"] = f"#{prefix}{attributes['href'].removeprefix('#')}"
    renamed = {key: _REFERENCE.sub(rf"url(#{prefix}\1)", value) for key, value in attributes.items()}
    element.attrib.clear()
    element.attrib.update(renamed)


def _local(name: str) -> str:
    return name.rpartition("}")[2]
