"""A hook of mkdocs: files of the repository that a page links, such as the tables of results, join the site.

Links in the pages are those of the repository, so that they work where the repository is read. ``docs`` is
the root of the site: ``../experiments/RESULTS.md`` becomes ``experiments/RESULTS.md`` there.
"""

from __future__ import annotations

import re
from pathlib import Path
from posixpath import dirname, normpath, relpath
from typing import Any

ROOT = Path(__file__).parents[1]
DOCS = "docs/"
_LINK = re.compile(r"(?<=\]\()[^)#:\s]+")


def on_files(files: Any, config: Any) -> Any:
    """Add every file that is linked from a page, and those that the added pages link."""
    from mkdocs.structure.files import File, InclusionLevel

    waiting = [file.src_uri for file in files.documentation_pages()]
    while waiting:
        page = _in_repository(waiting.pop())
        for link in _LINK.findall((ROOT / page).read_text()):
            linked = _target(page, link)
            if linked is None or files.get_file_from_path(place := linked.removeprefix(DOCS)):
                continue
            path = str(ROOT / linked)
            added = File.generated(config, place, abs_src_path=path, inclusion=InclusionLevel.NOT_IN_NAV)
            files.append(added)
            waiting += [place] if added.is_documentation_page() else []
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Return a page whose links to files of the repository are those of the site."""
    uri = page.file.src_uri

    def moved(link: re.Match[str]) -> str:
        linked = _target(_in_repository(uri), link[0])
        return link[0] if linked is None else relpath(linked.removeprefix(DOCS), dirname(uri) or ".")

    return _LINK.sub(moved, markdown)


def _in_repository(uri: str) -> str:
    """Return the path in the repository of a file of the site."""
    return DOCS + uri if (ROOT / DOCS / uri).exists() else uri


def _target(page: str, link: str) -> str | None:
    """Return the path in the repository of the file that a link leads to, or None if there is none."""
    path = normpath(f"{dirname(page)}/{link}") if dirname(page) else normpath(link)
    return path if not path.startswith("..") and (ROOT / path).is_file() else None
