"""Tables leave columns out before words and numbers break, at any width."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from hmc_onnx.analysis.narrow_table import NarrowTable

NAMES = ["/layer1/layer1.0/conv1/Conv", "/layer3/layer3.11/conv2/Conv"]
WHY = "it is decomposed, as the network loses little by that"
NUMBERS = ["2,359,296", "1,179,648"]


def shown(width: int) -> str:
    table = NarrowTable(
        "Layers", ("layer", "kernel", "MACs", "why"), right=("MACs",), sentences=("why",), dropped=("kernel", "MACs")
    )
    for name, number in zip(NAMES, NUMBERS, strict=True):
        table.add_row(name, "16×16×3×3", number, WHY)
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


@pytest.mark.parametrize("width", [56, 60, 66, 72, 80, 120])
def test_words_and_numbers_stay_whole_and_lines_within_the_width(width: int) -> None:
    text = shown(width)
    assert max(len(line) for line in text.splitlines()) <= width
    words = set(text.replace("│", " ").split())
    assert set(NAMES) <= words
    assert set(WHY.split()) <= words
    for column, cells in (("kernel", ["16×16×3×3"]), ("MACs", NUMBERS)):
        if "No room for" in text and column in text.split("No room for")[1]:
            assert not set(cells) & words
        else:
            assert set(cells) <= words


def test_columns_go_in_their_order() -> None:
    assert "No room for" not in shown(120)
    assert "No room for: kernel;" in shown(70)
    assert "No room for: kernel, MACs;" in shown(57)


def test_where_not_even_the_names_fit_they_fold() -> None:
    text = shown(30)
    assert max(len(line) for line in text.splitlines()) <= 30
    assert "".join(line.split("│")[1].strip() for line in text.splitlines() if "│" in line).startswith(
        "/layer1/layer1.0"
    )
