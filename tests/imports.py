"""Imports between our modules, and the picture of them in docs/architecture.md.

``python -m tests.imports`` draws the picture again. The imports are read from the source: those inside
functions and those under ``TYPE_CHECKING`` count too.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import networkx as nx

ROOT = Path(__file__).parent.parent
PACKAGES = ("agents", "amc", "conf", "envs", "experiments")
PAGE = ROOT / "docs" / "architecture.md"
FRONT_DOOR = ("amc", "experiments.library")
"""``amc/__init__.py`` offers the engine and imports it when it is first used: no arrow of the house."""
PICTURE = re.compile(r"```mermaid\n.*?```\n", re.DOTALL)


class Import(NamedTuple):
    """One import of one of our modules by another.

    Attributes:
        importer: dotted name of the importing module; the folder's name for an ``__init__.py``.
        imported: dotted name of the imported module or folder.
        place: file and line.
    """

    importer: str
    imported: str
    place: str


def source_files() -> dict[str, Path]:
    """Return every Python file of the packages by its dotted name."""
    files = (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))
    return {_dotted(path): path for path in files}


def folders() -> list[str]:
    """Return the dotted names of all folders with Python files, and "" for the repository."""
    parents = {path.parent.relative_to(ROOT) for path in source_files().values()}
    return ["", *sorted(".".join(parent.parts) for parent in parents)]


def read_imports() -> list[Import]:
    """Return all imports between our modules."""
    files = source_files()
    return [
        Import(importer, imported, f"{path.relative_to(ROOT)}:{line}")
        for importer, path in files.items()
        for imported, line in _imported(path, files)
        if not (importer == FRONT_DOOR[0] and imported.startswith(FRONT_DOOR[1]))
    ]


def arrows(imports: list[Import], folder: str) -> dict[tuple[str, str], list[Import]]:
    """Project imports onto the children of a folder: its files and sub-folders.

    Returns:
        the imports behind each arrow (importing child, imported child). The folder's own ``__init__.py`` is
        no child.
    """
    found: dict[tuple[str, str], list[Import]] = {}
    for own in imports:
        ends = child(own.importer, folder), child(own.imported, folder)
        if None not in ends and ends[0] != ends[1]:
            found.setdefault(ends, []).append(own)
    return found


def child(module: str, folder: str) -> str | None:
    """Return the child of ``folder`` that ``module`` is or lies in, or None if it lies elsewhere."""
    prefix = f"{folder}." if folder else ""
    return module.removeprefix(prefix).split(".")[0] if module.startswith(prefix) else None


def picture(imports: list[Import]) -> str:
    """Draw the folders as a mermaid block; arrows that follow from others are left out."""
    lines = ["flowchart TD"]
    for package in PACKAGES:
        inside = [name.split(".")[1] for name in folders() if re.fullmatch(rf"{package}\.\w+", name)]
        if package not in ("amc", "experiments"):
            lines.append(f"    {package}")
            continue
        graph = nx.DiGraph(pair for pair in arrows(imports, package) if set(pair) <= set(inside))
        graph.add_nodes_from(inside)
        lines += [
            f"    subgraph {package}",
            *(f"        {package}.{name}[{name}]" for name in sorted(inside)),
        ]
        lines += [f"        {package}.{a} --> {package}.{b}" for a, b in _reduced(graph)]
        lines.append("    end")
    lines += [f"    {a} --> {b}" for a, b in _reduced(nx.DiGraph(list(arrows(imports, ""))))]
    return "\n".join(["```mermaid", *lines, "```", ""])


def _reduced(graph: nx.DiGraph) -> list[tuple[str, str]]:
    return sorted(nx.transitive_reduction(graph).edges)


def _dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(path: Path, files: dict[str, Path]) -> Iterator[tuple[str, int]]:
    """Yield the modules of ours that a file imports, with the line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in files else str(node.module) for name in inner]
        else:
            continue
        yield from ((name, node.lineno) for name in dict.fromkeys(names) if name in files)


if __name__ == "__main__":
    PAGE.write_text(PICTURE.sub(lambda _: picture(read_imports()), PAGE.read_text(), count=1))
