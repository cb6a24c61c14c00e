"""Imports go one way: experiments -> {agents, envs, amc}, envs -> amc, amc -> nothing of ours."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = {"amc", "envs", "agents", "experiments"}
ALLOWED = {"amc": {"amc"}, "envs": {"envs", "amc"}, "agents": {"agents"}, "experiments": OURS}


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_imports_go_one_way(room):
    files = list((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        for module in imported_modules(path):
            top = module.split(".")[0]
            allowed = (
                top not in OURS or top in ALLOWED[room] or (room == "agents" and module == "amc.strategy")
            )
            assert allowed, f"{path.relative_to(ROOT)} imports {module}"


@pytest.mark.parametrize("room", ["envs", "conf"])
def test_no_torch(room):
    code = f"import sys, {room}; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_the_physics_does_not_speak_of_the_search():
    words = ("observation", "episode")
    for path in (ROOT / "amc").rglob("*.py"):
        if "report" in path.parts:  # it draws the search
            continue
        names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
        assert not [n for n in names if any(word in n.lower() for word in words)], path


def test_every_public_module_has_a_docstring():
    for room in ALLOWED:
        for path in (ROOT / room).rglob("*.py"):
            assert ast.get_docstring(ast.parse(path.read_text())), path
