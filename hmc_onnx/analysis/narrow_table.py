"""Tables that leave columns out where there is no room for all, before they break a word or a number in two."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

__all__ = ["NarrowTable"]

# Characters that a column of sentences is given at least, so that it is not one word a line.
SENTENCE = 20


class NarrowTable:
    """A table whose less important columns are left out where the console is too narrow; its caption names them.

    Args:
        title: above the table.
        columns: their headings.
        right: of these, the ones with numbers, which are set on the right.
        sentences: the ones with text, which may take several lines.
        dropped: the ones that may be left out, the first to go first.
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
        """Add a row: a cell for each column, in rich's markup."""
        self._rows.append(cells)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for count in range(len(self._dropped) + 1):
            table = self._without(self._dropped[:count], whole=True)
            # of an unbounded table, the least width in which no word breaks
            if Measurement.get(console, options.update(width=10_000), table).minimum <= options.max_width:
                yield table
                return
        yield self._without(self._dropped, whole=False)

    def _without(self, left_out: Sequence[str], whole: bool) -> Table:
        """The table without some columns; `whole`: a cell that is no sentence stays on one line."""
        table = Table(title=self._title, title_justify="left", caption_justify="left")
        if left_out:
            table.caption = f"No room for: {', '.join(left_out)}; a wider terminal shows them."
        shown = [i for i, name in enumerate(self._columns) if name not in left_out]
        for i in shown:
            name = self._columns[i]
            table.add_column(
                name,
                justify="right" if name in self._right else "left",
                overflow="fold",
                no_wrap=whole and name not in self._sentences,
                min_width=max(SENTENCE, self._longest_word(i)) if whole and name in self._sentences else None,
            )
        for row in self._rows:
            table.add_row(*(row[i] for i in shown))
        return table

    def _longest_word(self, column: int) -> int:
        """Its width in characters."""
        texts = [self._columns[column], *(Text.from_markup(row[column]).plain for row in self._rows)]
        return max((cell_len(word) for text in texts for word in text.split()), default=0)
