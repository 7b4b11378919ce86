"""mkdocs hooks: pages from outside docs/, and an anchor for every check."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

_ELSEWHERE = {"results.md": "benchmarks/results.md"}  # name on the site: path in the repository


def _exists(config: Any, name: str) -> bool:
    return name in _ELSEWHERE or (Path(config.docs_dir) / name).is_file()


def on_config(config: Any) -> Any:
    """Remove missing pages from the navigation."""
    for section in config.nav:
        for title, pages in section.items():
            if isinstance(pages, list):
                section[title] = [page for page in pages if all(_exists(config, name) for name in page.values())]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages from outside docs/."""
    root = Path(config.docs_dir).parent
    for name, source in _ELSEWHERE.items():
        files.append(File.generated(config, name, content=(root / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite links to pages of the site, and give each check an anchor, such as checks/#fiji.id."""
    for name, source in _ELSEWHERE.items():
        markdown = markdown.replace(f"(../{source}", f"({name}").replace("(../docs/", "(")
    if page.file.src_uri == "checks.md":
        markdown = re.sub(r"^\| `([\w.]+)`", r'| <a id="\1"></a>`\1`', markdown, flags=re.MULTILINE)
    return markdown
