"""The commands of all pages compose, the Python example runs, and links and names lead somewhere."""

import ast
import importlib.util
import os
import re
import runpy
import shlex
import subprocess
import sys
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from amc.quantization.settings import QuantizeSettings
from experiments.command.overrides import with_new_keys
from experiments.config import schema
from experiments.reproduce.front_page import JOB, PICTURE, RECORDS, front_page_svg
from experiments.reproduce.records import read_records
from experiments.words.words import own_command, settings_of
from tests.experiments.helpers import SMALL, composed, done
from tests.params import slow_but

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(page.read_text() for page in PAGES)
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", TEXT, re.DOTALL)
LINES = [line.split("#")[0].strip() for _, block in BLOCKS for line in block.splitlines()]
COMMANDS = [line for line in LINES if line.startswith("amc ")]
README = [command for command in COMMANDS if command in PAGES[0].read_text()]
NAMED = sorted(
    set(re.findall(r"`((?:agents|amc|conf|docs|envs|experiments|tests)/[\w./]*\.\w+)(?::(\w+))?`", TEXT))
)
"""Files that the pages name, some with a name defined there: `path.py:name`."""


@pytest.mark.parametrize("command", slow_but(README, COMMANDS))
def test_every_command_composes(command):
    words = shlex.split(command)[1:]
    if own_command(words) is not None:
        return
    words = settings_of(words)
    words = with_new_keys(words, schema.rules().free)
    overrides = [word for word in words if not word.startswith(("-", "hydra/launcher", "hydra.launcher"))]
    found = jobs(overrides) if "-m" in words else [overrides]
    for job in (found[0], found[-1]) if len(found) > 1 else found:
        assert composed(*job).stages


def test_quantizations_of_one_folder_may_follow_each_other_in_any_order():
    """A folder remembers the settings of the command before."""
    commands = [
        dict(word.removeprefix("quantize.").split("=", 1) for word in words if word.startswith("quantize."))
        for words in (shlex.split(command) for command in COMMANDS)
        if "run_dir=runs/default/TIME_s0" in words
    ]
    given = [own for own in commands if "method" in own]
    assert len(given) >= 3
    for before, after in permutations(given, 2):
        words = {**before, **after}
        QuantizeSettings(**{key: yaml.safe_load(value) for key, value in words.items()})


def jobs(overrides):
    parsed = OverridesParser.create().parse_overrides(overrides)
    (batch,) = BasicSweeper.split_arguments(parsed, None)
    return batch


def test_there_are_commands_and_every_make_target_exists():
    assert len(COMMANDS) >= 5
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:`|^)make ([a-z-]+)", TEXT, re.MULTILINE)):
        assert f"\n{target}:" in makefile, target


def test_the_python_example_runs(tmp_path):
    done(*SMALL, "model=resnet20", "run_dir=run", "stages=[train,search,prune]", cwd=tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs/quickstart.md").read_text(), re.DOTALL)
    names: dict = {}
    exec(re.sub(r'"runs/[^"]*"', repr(str(tmp_path / "run")), example), names)
    assert sum(p.numel() for p in names["net"].parameters()) > 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_linked_files_exist(page):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_index_links_every_page():
    index = (ROOT / "docs" / "README.md").read_text()
    assert [
        page.name for page in PAGES[2:] if page.name != "README.md" and f"]({page.name})" not in index
    ] == []
    assert "](docs/README.md)" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_files_and_names_in_the_text_exist(path, name):
    if "NAME" in path:
        return
    assert (ROOT / path).exists()
    if name:
        assert re.search(rf"^(?:def |class )?{name}\b", (ROOT / path).read_text(), re.MULTILINE)


def test_the_site_has_every_page_in_the_order_of_the_index():
    # BaseLoader: the file names a Python function for mkdocs
    nav = yaml.load((ROOT / "mkdocs.yml").read_text(), yaml.BaseLoader)["nav"]
    pages = [page for entry in nav for page in listed(entry)]
    index = re.findall(r"^\| \[[\w.-]+\]\(([\w.-]+)\)", (ROOT / "docs/README.md").read_text(), re.MULTILINE)
    assert pages == ["README.md", *index]
    assert set(pages) == {page.name for page in (ROOT / "docs").glob("*.md")}


def test_links_out_of_the_pages_lead_to_copies_in_the_site():
    linked = runpy.run_path(str(ROOT / "docs/linked.py"))

    def moved(page, text):
        return linked["on_page_markdown"](text, page=SimpleNamespace(file=SimpleNamespace(src_uri=page)))

    assert moved("results.md", "[r](../experiments/RESULTS.md#x)") == "[r](experiments/RESULTS.md#x)"
    assert moved("results.md", "![p](resnet20.svg) [n](nowhere.md)") == "![p](resnet20.svg) [n](nowhere.md)"
    assert moved("CHANGELOG.md", "[a](docs/agent.md)") == "[a](agent.md)"
    assert moved("experiments/RESULTS_EARLIER.md", "[r](RESULTS.md)") == "[r](RESULTS.md)"


@pytest.mark.skipif(importlib.util.find_spec("material") is None, reason="mkdocs-material is not installed")
def test_the_site_is_built_without_a_dead_link(tmp_path):
    build = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("RESULTS", "COVERAGE", "PARITY", "RESULTS_EARLIER"):
        assert (tmp_path / "experiments" / name / "index.html").exists()


def listed(entry):
    if isinstance(entry, str):
        return [entry]
    (inner,) = entry.values()
    return [inner] if isinstance(inner, str) else [page for each in inner for page in listed(each)]


def texts_of_the_source():
    """Return every string of the source, and every f-string with `...` for what it fills in."""
    found = []
    for package in ("agents", "amc", "envs", "experiments"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    found.append(
                        "".join(v.value if isinstance(v, ast.Constant) else "..." for v in node.values)
                    )
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return found


def test_every_message_of_the_troubleshooting_page_is_one_of_ours():
    page = (ROOT / "docs/troubleshooting.md").read_text()
    messages = re.findall(r"^\| `([^|]+)` \|", page, re.MULTILINE)
    source = set(texts_of_the_source())
    assert len(messages) > 20
    missing = []
    for message in messages:
        parts = re.split(r"'?\.\.\.'?", message)
        pattern, longest = re.compile(".*".join(map(re.escape, parts)), re.DOTALL), max(parts, key=len)
        if not any(longest in text and pattern.search(text) for text in source):
            missing.append(message)
    assert missing == []


def test_the_picture_shows_the_figures_of_the_records():
    results = [result for result in read_records(RECORDS) if result.slug == JOB]
    drawn, shown = (
        re.findall(r"<text [^>]*>(.*?)</text>", svg) for svg in (front_page_svg(results), PICTURE.read_text())
    )
    assert len(drawn) > 10
    assert drawn == shown
