"""A report as a file: a page or JSON, by the file's name."""

from __future__ import annotations

import os
from pathlib import Path

from hmc_onnx.records.report import RunReport

__all__ = ["PAGES", "write_report_file"]

# Endings of the names of pages; all other reports are JSON.
PAGES = (".html", ".htm")


def write_report_file(report: RunReport, path: str | os.PathLike[str]) -> None:
    """Write a report atomically: a page where the file's name ends as a page's, else JSON.

    Raises:
        OutputError: the file cannot be written.
    """
    if Path(path).suffix.lower() in PAGES:
        from hmc_onnx.reporting.page import write_page  # noqa: PLC0415  what draws is imported for a page only

        write_page(report, path)
    else:
        report.save(path)
