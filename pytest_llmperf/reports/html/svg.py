"""matplotlib's figures as SVG within a page: colours that the page's themes decide, names for who cannot see them."""

from __future__ import annotations

import importlib.util
import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.reports.visible import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colours that no plot has by itself; each becomes a custom property of the page's style sheet.
INK, MUTED, GRID = "#a1b201", "#a1b202", "#a1b203"
NOW, BEFORE, THIRD, BAD = "#a1b204", "#a1b205", "#a1b206", "#a1b207"
_PROPERTIES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--line",
    NOW: "--now",
    BEFORE: "--before",
    THIRD: "--third",
    BAD: "--bad",
}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a test's name may hold dollars
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # which matplotlib brings along; the page shows its own
    "font.size": 9.0,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 9.0,
    "axes.titlelocation": "left",
    "axes.labelsize": 8.0,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "xtick.minor.size": 0.0,
    "ytick.minor.size": 0.0,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "lines.linewidth": 1.4,
    "path.simplify": True,
}
LIBRARIES = ("jinja2", "matplotlib")
"""Of the extra `report`."""
_WIDTH_IN = 9.6
_LEFT_IN, _RIGHT_IN, _TOP_IN, _BOTTOM_IN = 0.85, 0.25, 0.26, 0.42
_NOT_TURNED = re.compile(r"rotate\(-?0(\.0+)? [^)]*\)")
_FRACTION = re.compile(r"(\d+\.\d{2})\d+")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_NAMESPACE = re.compile(r"\{[^}]*\}")
_SHORTENED = ("d", "x", "y", "points", "transform")
_XLINK = "{http://www.w3.org/1999/xlink}href"
_SVG = "{http://www.w3.org/2000/svg}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The figures of a plot, for who would rather read them."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A plot as it stands in the page. `svg` is safe to be put there as it is."""

    title: str
    description: str
    svg: str
    table: Table


def check_installed() -> None:
    """Raise `ConfigurationError` with what to install, where the report's libraries are not there."""
    missing = [module for module in LIBRARIES if importlib.util.find_spec(module) is None]
    if missing:
        raise ConfigurationError(
            f"the HTML report needs {' and '.join(missing)}: pip install 'pytest-llmperf[report]'; --markdown does not"
        )


def drawn(
    draw: Callable[[Figure], None],
    *,
    name: str,
    title: str,
    description: str,
    height_in: float,
    table: Table,
    gap: float = 0.28,
) -> Plot:
    """The plot that `draw` makes of an empty figure.

    `name`: letters and digits that no other plot of the page has. `gap`: between columns, as a share of their width.
    """
    import matplotlib as mpl  # noqa: PLC0415 - an extra
    from matplotlib.backends.backend_svg import FigureCanvasSVG  # noqa: PLC0415 - an extra
    from matplotlib.figure import Figure  # noqa: PLC0415 - an extra

    style: Any = {**_STYLE, "svg.hashsalt": name}
    with mpl.rc_context(style):
        figure = Figure(figsize=(_WIDTH_IN, height_in))
        figure.patch.set_visible(False)
        draw(figure)
        # Margins for the longest labels there are: having them measured takes as long as all the rest.
        figure.subplots_adjust(
            left=_LEFT_IN / _WIDTH_IN,
            right=1 - _RIGHT_IN / _WIDTH_IN,
            top=1 - _TOP_IN / height_in,
            bottom=_BOTTOM_IN / height_in,
            wspace=gap,
            hspace=0.3,
        )
        written = io.StringIO()
        canvas: Any = FigureCanvasSVG(figure)
        canvas.print_svg(written, metadata={"Date": None})
    title, description = visible(title), visible(description)
    return Plot(
        title=title,
        description=description,
        svg=_for_page(written.getvalue(), name, title, description),
        table=table,
    )


def _for_page(written: str, name: str, title: str, description: str) -> str:
    root = ElementTree.fromstring(written)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == f"{_SVG}style" or _NAMESPACE.sub("", str(child.tag)) == "metadata":
                parent.remove(child)
    _rename(root, name)
    for tag, text in (("desc", description), ("title", title)):
        element = ElementTree.Element(f"{_SVG}{tag}", {"id": f"{name}-{tag}"})
        element.text = text
        root.insert(0, element)
    root.attrib |= {"role": "img", "aria-labelledby": f"{name}-title {name}-desc", "class": "plot"}
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    for element in root.iter():
        element.tag = _NAMESPACE.sub("", element.tag)
        element.tail = None
        if not (element.text or "").strip():
            element.text = None
    return _themed(ElementTree.tostring(root, encoding="unicode"))


def _rename(root: ElementTree.Element, name: str) -> None:
    """Only what is referred to keeps a name, which no other plot has."""
    wanted = set(_references(root))
    for element in root.iter():
        own = element.attrib.pop("id", None)
        if own in wanted:
            element.set("id", f"{name}-{own}")
        target = element.attrib.pop(_XLINK, None)
        if target is not None:
            element.set("href", f"#{name}-{target.removeprefix('#')}")
        for attribute, value in element.attrib.items():
            renamed = _REFERENCE.sub(rf"url(#{name}-\1)", value)
            element.set(attribute, _short(renamed) if attribute in _SHORTENED else renamed)
        if _NOT_TURNED.fullmatch(element.attrib.get("transform", "")):
            del element.attrib["transform"]


def _short(coordinates: str) -> str:
    """No finer than a hundredth of a point."""
    return " ".join(_FRACTION.sub(r"\1", coordinates).split())


def _references(root: ElementTree.Element) -> Iterable[str]:
    for element in root.iter():
        yield element.attrib.get(_XLINK, "").removeprefix("#")
        for value in element.attrib.values():
            yield from _REFERENCE.findall(value)


def _themed(svg: str) -> str:
    for colour, name in _PROPERTIES.items():
        svg = svg.replace(colour, f"var({name})")
    return svg
