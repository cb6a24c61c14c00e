"""Imports go one way, folders are small, and amc does not know who searches."""

import ast
import re
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions

import pytest

from tests.imports import PAGE, PICTURE, ROOT, arrows, child, folders, picture, read_imports, source_files

IMPORTS = read_imports()
ALLOWED = {
    "agents": set(),
    "amc": set(),
    "conf": set(),
    "envs": {"amc"},
    "experiments": {"agents", "amc", "conf", "envs"},
}
EXCUSED: dict[tuple[str, str], str] = {}
"""Imports that may close a circle, with the reason: (importer, imported)."""
FILES_A_FOLDER = 13
WORDS_OF_THE_SEARCH = re.compile(
    r"(?<![a-z])(observation|action|reward|episode|agent)s?(?![a-z])", re.IGNORECASE
)


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_import_downwards(package):
    wrong = [
        f"{own.place} imports {own.imported}"
        for (importer, imported), found in arrows(IMPORTS, "").items()
        for own in found
        if importer == package and imported not in ALLOWED[package]
    ]
    assert not wrong


@pytest.mark.parametrize("folder", folders())
def test_no_circle_between_the_files_and_folders_of(folder):
    found = {
        ends: kept
        for ends, imports in arrows(IMPORTS, folder).items()
        if (kept := [own for own in imports if own[:2] not in EXCUSED])
    }
    order = TopologicalSorter()
    for importer, imported in found:
        order.add(importer, imported)
    try:
        order.prepare()
    except CycleError as error:
        # graphlib names each node before the one that depends on it
        steps = zip(error.args[1][1:], error.args[1], strict=False)
        pytest.fail("\n".join(f"{own.place} imports {own.imported}" for step in steps for own in found[step]))


def test_every_excuse_is_needed():
    assert set(EXCUSED) <= {own[:2] for own in IMPORTS}


def test_nothing_imports_from_the_init_of_a_folder_it_lies_in():
    files = source_files()
    wrong = [
        f"{own.place} imports {own.imported}"
        for own in IMPORTS
        if files[own.imported].name == "__init__.py" and child(own.importer, own.imported) is not None
    ]
    assert not wrong


@pytest.mark.parametrize("package", ["envs", "conf", "experiments.main"])
def test_no_torch(package):
    code = f"import sys, {package}; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("package", [*ALLOWED, "tests"])
def test_folders_are_small(package):
    sizes: dict[str, int] = {}
    for path in (ROOT / package).rglob("*.py"):
        if path.name != "__init__.py":
            folder = str(path.parent.relative_to(ROOT))
            sizes[folder] = sizes.get(folder, 0) + 1
    assert {folder: size for folder, size in sizes.items() if size > FILES_A_FOLDER} == {}


def test_amc_knows_nothing_of_the_search():
    """Names, docstrings, comments and messages of amc are about networks, not about who searches and how."""
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sorted((ROOT / "amc").rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if WORDS_OF_THE_SEARCH.search(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", line))
    ]
    assert not found, "\n".join(found)


def test_networks_are_copied_by_copied():
    """``copy.deepcopy`` alone loses the mode of torchvision's feature extractors."""
    others = {"amc/quantization/layers.py", "amc/scoring/run.py", "experiments/stages/networks/finetune.py"}
    found = {
        str(path.relative_to(ROOT)) for path in source_files().values() if "deepcopy(" in path.read_text()
    }
    assert found == others


def test_every_module_has_a_docstring():
    for path in source_files().values():
        assert ast.get_docstring(ast.parse(path.read_text())), path


def test_the_picture_is_drawn_from_the_imports():
    drawn = PICTURE.search(PAGE.read_text())
    assert drawn is not None
    assert drawn.group() == picture(IMPORTS), "draw it again: python -m tests.imports"


def test_every_library_that_is_imported_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    listed = [*project["dependencies"], *(entry for extra in extras.values() for entry in extra)]
    declared = {re.match(r"[\w.-]+", entry).group().lower().replace("_", "-") for entry in listed}
    declared |= {"omegaconf", "pyyaml"}  # parts of hydra-core's interface
    distributions = packages_distributions()
    missing = {}
    for path in source_files().values():
        for name in third_party(path):
            found = {each.lower().replace("_", "-") for each in distributions.get(name, [])}
            if found and not found & declared:
                missing[name] = str(path.relative_to(ROOT))
    assert not missing


def third_party(path):
    """Yield the top-level names of other projects that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        tops = {name.split(".")[0] for name in names}
        yield from tops - set(sys.stdlib_module_names) - set(ALLOWED)
