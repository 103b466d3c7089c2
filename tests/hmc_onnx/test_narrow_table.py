"""Tables leave columns out before words and numbers break, at any width."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from hmc_onnx.analysis.narrow_table import NarrowTable, shortened

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


def test_where_not_even_the_names_fit_they_are_shortened_in_the_middle() -> None:
    text = shown(50)
    assert max(len(line) for line in text.splitlines()) <= 50
    assert "/layer1/l" in text
    assert "v1/Conv" in text
    assert "…" in text
    assert set(WHY.split()) <= set(text.replace("│", " ").split())


def test_long_names_are_shortened_before_a_column_goes() -> None:
    table = NarrowTable("Layers", ("layer", "MACs", "why"), right=("MACs",), sentences=("why",), dropped=("MACs",))
    table.add_row("/layer1/layer1.0/downsample/downsample.0/Conv", "2,359,296", WHY)
    console = Console(width=74, record=True, file=io.StringIO())
    console.print(table)
    words = console.export_text().replace("│", " ").split()
    assert "/layer1/layer1.…ownsample.0/Conv" in words
    assert "2,359,296" in words


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (["/blocks/blocks.0/conv1/Conv", "/blocks/blocks.1/conv1/Conv"], False),  # these differ in the middle
        (["/layer1/a/very/long/name/conv1", "/layer2/a/very/long/name/conv2"], True),
    ],
)
def test_names_are_shortened_for_the_reason_to_stay_while_they_differ(names: list[str], kept: bool) -> None:
    table = NarrowTable("Layers", ("layer", "MACs", "why"), right=("MACs",), sentences=("why",), dropped=("why",))
    for name in names:
        table.add_row(name, "2,359,296", WHY)
    console = Console(width=55, record=True, file=io.StringIO())
    console.print(table)
    text = console.export_text()
    assert ("No room for: why" not in text) == kept
    assert (names[0] not in text) == kept


def test_where_nothing_fits_names_fold() -> None:
    text = shown(30)
    assert max(len(line) for line in text.splitlines()) <= 30


@pytest.mark.parametrize(("most", "expected"), [(9, "abcdefghi"), (8, "abc…fghi"), (5, "ab…hi"), (4, "a…hi")])
def test_a_name_is_shortened_to_a_length(most: int, expected: str) -> None:
    assert shortened("abcdefghi", most) == expected
