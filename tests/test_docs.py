"""The commands of the README and of the other pages compose, and the Python example runs."""

import re
import shlex
from pathlib import Path

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from tests.experiments.config.test_config import composed
from tests.experiments.helpers import SMALL, done

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
PAGES = [page.read_text() for page in sorted((ROOT / "docs").glob("*.md"))]
ALL_BLOCKS = BLOCKS + [
    block for page in PAGES for block in re.findall(r"```(\w*)\n(.*?)```", page, re.DOTALL)
]
LINES = [line.split("#")[0].strip() for _, block in ALL_BLOCKS for line in block.splitlines()]
COMMANDS = [line for line in LINES if line.startswith("amc ")]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_composes(command):
    words = shlex.split(command)[1:]
    overrides = [word for word in words if not word.startswith(("-", "hydra/launcher", "hydra.launcher"))]
    found = jobs(overrides) if "-m" in words else [overrides]
    for job in (found[0], found[-1]) if len(found) > 1 else found:
        assert composed(*job).stages


def jobs(overrides):
    parsed = OverridesParser.create().parse_overrides(overrides)
    (batch,) = BasicSweeper.split_arguments(parsed, None)
    return batch


def test_there_are_commands_and_every_make_target_exists():
    assert len(COMMANDS) >= 5
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:`|^)make ([a-z-]+)", README, re.MULTILINE)):
        assert f"\n{target}:" in makefile, target


def test_the_python_example_runs(tmp_path):
    done(*SMALL, "model=resnet20", "run_dir=run", "stages=[train,search,prune]", cwd=tmp_path)
    (example,) = [block for language, block in BLOCKS if language == "python"]
    names: dict = {}
    exec(re.sub(r'"runs/[^"]*"', repr(str(tmp_path / "run")), example), names)
    assert sum(p.numel() for p in names["net"].parameters()) > 0


def test_linked_files_exist():
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert all((ROOT / link).exists() for link in links)
