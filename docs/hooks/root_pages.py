"""A hook of mkdocs: CONTRIBUTING.md and CHANGELOG.md of the repository's root become pages of the site.

These files, and the pages in docs/, link to each other as they lie in the repository, so that the links work there.
On the site all pages lie in one folder, and the links are changed to that.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

# Files of the root that are pages, and the page that stands for each on the site; README.md is not repeated there.
PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
SITE = {**PAGES, "README.md": "index.md"}

LINK = re.compile(r"\]\((?:\.\./|docs/)?([^)#:]+\.md)(#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the root."""
    root = Path(config.config_file_path).parent
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=(root / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Change links between the root and docs/ to links within the site."""
    return LINK.sub(lambda link: f"]({SITE.get(link[1], link[1])}{link[2] or ''})", markdown)
