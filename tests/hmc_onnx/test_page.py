"""The report's page: every section is there, it needs nothing else, and a browser shows it without a complaint."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from reports import comparison, report, timing

from hmc_onnx.records.comparison import BUSY
from hmc_onnx.records.report import RunReport, TrainingEpoch
from hmc_onnx.reporting import tables
from hmc_onnx.reporting.drawing.layer_curves import KINDS
from hmc_onnx.reporting.page import page
from hmc_onnx.reporting.run_report import run_report
from hmc_onnx.reporting.summary import as_text
from passes.decompose import DECOMPOSITIONS

SECTIONS = {
    "headline", "trade-off", "grouping", "layers", "classes", "images", "training", "left-alone", "provenance",
}  # fmt: skip
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((found for found in map(shutil.which, BROWSERS) if found is not None), None)


class Page(HTMLParser):
    """Collects ids, what is loaded or linked, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.sections: set[str] = set()
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.ids.append(value)
                if tag == "section":
                    self.sections.add(value)
            if name in ("src", "href", "xlink:href", "srcset", "action", "data") and value:
                self.links.append(value)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def whole() -> RunReport:
    epoch = TrainingEpoch(epoch=1, loss=0.5, held=0.4, top1=0.9, seconds=60)
    return report(prefix="<b>&a/layer").model_copy(update={"epochs": [epoch]})


def test_every_section_is_there_and_every_link_leads_to_one() -> None:
    found = Page(page(whole()))
    assert found.sections == SECTIONS
    assert all(link.removeprefix("#") in found.ids for link in found.links if link.startswith("#"))
    assert len(found.ids) == len(set(found.ids))


def test_nothing_is_loaded_from_elsewhere() -> None:
    text = page(whole())
    assert all(link.startswith(("#", "data:")) for link in Page(text).links)
    assert not re.search(r"url\((?!#)|@import|\bfetch\(|XMLHttpRequest", text)
    assert "http://" not in text and "https://" not in text


def test_names_are_shown_as_they_are() -> None:
    text = page(whole())
    words = "".join(Page(text).words)
    assert (
        "<b>&a/layer0" in words and "cat <&>" in words and "<out>.onnx" in words and "100 images of 'a<b>&c'" in words
    )
    assert "<b>&a" not in text and "<out>" not in text and "cat <&>" not in text


def test_what_was_measured_is_said() -> None:
    words = " ".join("".join(Page(page(whole())).words).split())
    for said in (
        "91.0 %→90.0 %", "80.0 ms→48.0 ms", "800 B→400 B", "0.600 ± 0.010 of the time",
        "The quantiser alone (the original in int8, nothing else done) gives a top-1 of 90.5 % in 0.80 of the time",
        "3 of 100 images get another class", "label cat <&>: now right", "label dog: now wrong",
        "hmc-onnx compress 'a b.onnx'", "It is the model's output 'y'.", "because of <b>&a/layer2", "svd, rank 4",
    ):  # fmt: skip
        assert said in words, said


@pytest.mark.parametrize(
    ("images", "says"),
    [
        ({"new_images": False}, "so nothing is known of new ones"),
        ({"new_images": True, "held_back": True}, "If the model was trained on them, new ones fare somewhat worse"),
        ({"new_images": True}, ""),
    ],
)
def test_what_the_images_do_not_tell_is_said_in_the_table_and_on_the_page(images: dict[str, bool], says: str) -> None:
    compared = comparison(changes=None, unchanged=None, curve=[]).model_copy(update=images)
    for text in (page(run_report(compared)), as_text(tables.comparison(compared))):
        words = " ".join(text.split())
        assert says in words
        assert says or "new ones" not in words


def test_how_sure_the_figures_are_is_said() -> None:
    def words(**changed: object) -> str:
        return " ".join("".join(Page(page(report(**changed))).words).split())

    change = {"kl": {"low": 0, "high": 1}, "change": {"low": -0.02, "high": 0.001}}
    assert "−1.00 points (−2.00 to +0.10)" in words(intervals=change)
    assert "busy" not in words()
    noisy = {"timings": [timing(1, 0.7), timing(8, 0.6).model_copy(update={"uncertainty": 0.3})]}
    assert "0.600 ± 0.300 of the time: the machine was busy" in words(**noisy)
    assert BUSY in words(**noisy)
    assert "the machine was busy while" in as_text(tables.comparison(comparison(**noisy))).lower()


def test_what_speaks_against_serving_the_file_is_said() -> None:
    text = page(report(doubts=["these times, of `target`, are <none>"]))
    assert "These times, of target, are &lt;none&gt;." in text and 'class="doubt"' not in page(report())


def test_the_head_says_what_was_asked_for() -> None:
    assert "strategy hmc, target latency=0.6" in page(report())
    assert "as the fastest that was found to lose at most 1.0 %" in page(report(max_drop=0.01))


def test_the_original_is_named_by_the_digest_that_inspect_shows() -> None:
    assert f"<code>{'0a' * 32}</code>" in page(report(original="0a" * 32))


def test_two_models_that_are_only_compared_have_a_page_too() -> None:
    found = Page(page(run_report(comparison(changes=None, unchanged=None, curve=[]))))
    assert found.sections == {"headline", "trade-off", "provenance"}


def test_the_same_report_gives_the_same_page() -> None:
    assert page(whole()) == page(RunReport.model_validate_json(whole().model_dump_json()))


def test_the_page_of_a_very_long_network_is_small() -> None:
    text = page(report(500, prefix="/model/stage/blocks/block/conv"))
    assert text.count('<tbody class="layer"') == 500
    assert len(text.encode()) < 3_000_000


def test_what_draws_is_imported_for_a_page_only() -> None:
    code = "import sys, hmc_onnx.cli.commands as c; c.commands(); import hmc_onnx.run, hmc_onnx.reporting.run_report\n"
    code += "assert not {'matplotlib', 'jinja2'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_each_decomposition_has_its_curve_in_the_legend() -> None:
    assert set(DECOMPOSITIONS) <= set(KINDS)


def test_pictures_take_their_colours_from_the_page() -> None:
    pictures = re.findall(r"<svg.*?</svg>", page(whole()), re.DOTALL)
    assert len(pictures) == 3 + 1 + 3  # the frame of the layers' pictures is one
    assert not [found for drawn in pictures for found in re.findall(r"#[0-9a-f]{6}\b", drawn) if found != "#000000"]


@pytest.mark.skipif(CHROMIUM is None, reason="no browser here: install the Debian package `chromium`")
@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_it_without_errors_and_without_overflow(tmp_path: Path, width: int) -> None:
    """The page is in a frame of the width, as a window of headless Chromium is never narrower than 500 pixels."""
    text = page(report(80, prefix="/model/stage/blocks/a_block_with_a_rather_long_name/convolution"))
    opened = text.replace("</body>", "<script>document.getElementById('open-all').click()</script></body>")
    (tmp_path / "run.html").write_text(opened)
    (tmp_path / "frame.html").write_text(
        f"<iframe id=f src=run.html style='width:{width}px;height:9in;border:0'></iframe>"
        "<script>onload=()=>{const d=document.getElementById('f').contentDocument,e=d.documentElement;"
        "document.title=[e.clientWidth,e.scrollWidth,d.querySelectorAll('tbody.layer:not([hidden])').length,"
        "d.querySelectorAll('tr.detail:not([hidden])').length].join(' ')}</script>"
    )
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
        "--allow-file-access-from-files",
        f"--user-data-dir={tmp_path / 'user'}", "--window-size=1400,1000", "--virtual-time-budget=5000", "--dump-dom",
        (tmp_path / "frame.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr, done.stderr
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None, done.stdout[:2000]
    inner, needed, rows, details = map(int, title[1].split())
    assert inner <= width and needed <= inner
    assert rows == 60 and details >= 60
