"""The processor is asked once, and what it is called tells apart those of different speed."""

from __future__ import annotations

import platform
from collections.abc import Iterator

import cpuinfo
import pytest

from calib.runtime import processor
from calib.runtime.processor import instructions, processor_name


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    processor._facts.cache_clear()
    yield
    processor._facts.cache_clear()


def test_a_processor_has_a_name_and_is_asked_for_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    known = processor_name()
    assert known
    monkeypatch.setattr(cpuinfo, "get_cpu_info", dict)
    assert processor_name() == known


@pytest.mark.parametrize("error", [OSError("no process"), ValueError("no JSON")])
def test_a_processor_that_cannot_be_asked_has_its_architecture_as_a_name(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails() -> dict:
        raise error

    monkeypatch.setattr(cpuinfo, "get_cpu_info", fails)
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert processor_name() == platform.machine()
    assert instructions() == frozenset()


def test_processors_of_one_name_are_kept_apart_by_what_they_do_in_int8(monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()
    for flags in (["avx512f"], ["avx512f", "avx512_vnni"], ["avx512f", "avx512_vnni", "amx_int8"]):
        monkeypatch.setattr(cpuinfo, "get_cpu_info", lambda flags=flags: {"brand_raw": "Fast", "flags": flags})
        processor._facts.cache_clear()
        found.add(processor_name())
    assert found == {"Fast avx512f", "Fast avx512f avx512_vnni", "Fast avx512f amx_int8"}
