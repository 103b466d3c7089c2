"""Results as text and as HTML, for printing and for notebooks."""

from __future__ import annotations

from io import StringIO

from rich.console import Console, RenderableType

__all__ = ["as_html", "as_text"]

WIDTH = 100


def as_text(shown: RenderableType) -> str:
    """A table as plain text."""
    console = Console(file=StringIO(), width=WIDTH, highlight=False, color_system=None)
    with console.capture() as captured:
        console.print(shown)
    return captured.get().rstrip("\n")


def as_html(shown: RenderableType) -> str:
    """A table as a fragment of HTML with its styles inline, as notebooks show it."""
    console = Console(file=StringIO(), width=WIDTH, record=True, highlight=False, force_jupyter=False)
    console.print(shown)
    return console.export_html(inline_styles=True, code_format="<pre style='line-height:normal'>{code}</pre>")
