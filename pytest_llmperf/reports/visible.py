"""Text from elsewhere as text: nothing in it may steer whatever shows it."""

from __future__ import annotations

_LONGEST = 2000
"""Characters of one text that a reader is shown; an engine's error may carry a whole page."""


def visible(text: object, longest: int = _LONGEST) -> str:
    """The text with what cannot be seen written out: control and direction characters, lone surrogates.

    `\\x1b[31m` stays readable and colours nothing. Line ends remain; beyond `longest` characters it ends in `…`.
    """
    shown = str(text)
    if len(shown) > longest:
        shown = f"{shown[: longest - 1]}…"
    if shown.isprintable():
        return shown
    return "".join(one if one.isprintable() or one == "\n" else _written(one) for one in shown)


def _written(character: str) -> str:
    if character.isspace() and character > "\x7f":
        return " "  # a wide or a fixed space
    return character.encode("unicode_escape").decode("ascii")
