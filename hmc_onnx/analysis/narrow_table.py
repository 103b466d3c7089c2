"""Tables for narrow terminals: columns of little weight are left out, and long names are shortened in the middle.

Words and numbers are not broken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.table import Table
from rich.text import Text

__all__ = ["NarrowTable", "shortened"]

# Minimum width of a column of sentences, in characters, so that it does not have one word per line.
SENTENCE = 20
# Characters that each column takes in addition to its width: a space on both sides, and a line.
BORDER = 3
# Characters that names of the first column are shortened to, where there is no room, and the least that they keep.
NAME, SHORTEST = 32, 12


class NarrowTable:
    """A table whose less important columns are left out where the console is too narrow; its caption names them.

    Args:
        title: title above the table.
        columns: headings of the columns; the first column is of names.
        right: headings of the columns of numbers, which are aligned right.
        sentences: headings of the columns of text, which may be wrapped.
        dropped: headings of the columns that may be left out, in the order in which they are.
    """

    def __init__(
        self,
        title: str,
        columns: Sequence[str],
        *,
        right: Sequence[str] = (),
        sentences: Sequence[str] = (),
        dropped: Sequence[str] = (),
    ) -> None:
        self._title, self._columns = title, list(columns)
        self._right, self._sentences, self._dropped = set(right), set(sentences), list(dropped)
        self._rows: list[tuple[str, ...]] = []

    def add_row(self, *cells: str) -> None:
        """Add a row with a cell for each column, in rich's markup."""
        self._rows.append(cells)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows, every, width = self._rows, range(len(self._columns)), options.max_width
        if self._widths(rows, every, width) is None:
            rows = self._with_names(NAME)
        for count in range(len(self._dropped) + 1):
            shown = [i for i in every if self._columns[i] not in self._dropped[:count]]
            widths = self._widths(rows, shown, width)
            if widths is None and count < len(self._dropped) and self._dropped[count] in self._sentences:
                rows, widths = self._shrunk(rows, shown, width, distinct=True)
            if widths is not None:
                break
        if widths is None:
            rows, widths = self._shrunk(rows, shown, width, distinct=False)
        yield self._table(self._rows if widths is None else rows, shown, widths, self._dropped[:count])

    def _shrunk(
        self, rows: list[tuple[str, ...]], shown: Sequence[int], width: int, distinct: bool
    ) -> tuple[list[tuple[str, ...]], list[int] | None]:
        """The rows with names as short as they must be for the table to fit, and its widths; None if none fits.

        Args:
            rows: given back where none fits.
            shown: the columns.
            width: of the table.
            distinct: whether the names must stay different.
        """
        names = len({row[0] for row in self._rows})
        for most in range(NAME - 1, SHORTEST - 1, -1):
            short = self._with_names(most)
            if distinct and len({row[0] for row in short}) < names:
                break
            if (widths := self._widths(short, shown, width)) is not None:
                return short, widths
        return rows, None

    def _with_names(self, most: int) -> list[tuple[str, ...]]:
        """The rows, with names shortened to so many characters at most."""
        return [(escape(shortened(Text.from_markup(name).plain, most)), *others) for name, *others in self._rows]

    def _widths(self, rows: Sequence[tuple[str, ...]], shown: Sequence[int], width: int) -> list[int] | None:
        """Widths of the shown columns for a table of some width; None if a word would be broken."""
        texts = [[self._columns[i], *(Text.from_markup(row[i]).plain for row in rows)] for i in shown]
        whole = [max(map(cell_len, cells)) for cells in texts]
        least = list(whole)
        for k, i in enumerate(shown):
            if self._columns[i] in self._sentences:
                longest = max(cell_len(word) for text in texts[k] for word in (text.split() or [""]))
                least[k] = min(whole[k], max(SENTENCE, longest))
        spare = width - sum(least) - (BORDER * len(shown) + 1)
        if spare < 0:
            return None
        # the spare width goes to the columns of text, first to those that need the least
        widening = sorted(range(len(shown)), key=lambda k: whole[k] - least[k])
        for done, k in enumerate(widening):
            more = min(whole[k] - least[k], spare // (len(widening) - done))
            least[k], spare = least[k] + more, spare - more
        return least

    def _table(
        self,
        rows: Sequence[tuple[str, ...]],
        shown: Sequence[int],
        widths: list[int] | None,
        left_out: Sequence[str],
    ) -> Table:
        table = Table(title=self._title, title_justify="left", caption_justify="left")
        if left_out:
            table.caption = f"No room for: {', '.join(left_out)}; a wider terminal shows them."
        for k, i in enumerate(shown):
            side: Literal["left", "right"] = "right" if self._columns[i] in self._right else "left"
            table.add_column(self._columns[i], justify=side, overflow="fold", width=widths[k] if widths else None)
        for row in rows:
            table.add_row(*(row[i] for i in shown))
        return table


def shortened(name: str, most: int) -> str:
    """A name of so many characters at most: what is too many is left out in the middle."""
    if len(name) <= most:
        return name
    head = (most - 1) // 2
    return f"{name[:head]}…{name[len(name) - (most - 1 - head) :]}"
