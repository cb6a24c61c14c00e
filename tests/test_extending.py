"""The code of docs/extending.md and docs/library.md runs as it stands there."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3 import TD3
from torch import nn

import amc
from amc import data as datasets
from amc.export.exported import file_writer
from amc.export.formats import FORMATS, Format
from amc.latency.comparison import compare
from amc.latency.registry import BACKENDS
from envs.reward import REWARDS, Reward
from experiments.config.agents import AGENTS, AgentKind
from tests.experiments.helpers import TINY, done, read_lines, refused, workspace
from tests.experiments.helpers import amc as amc_command
from tests.fakes import registered

DOCS = Path(__file__).parent.parent / "docs"
TABLES: dict[str, Any] = {
    "An agent": AGENTS,
    "A reward": REWARDS,
    "A data set": datasets.BUILDERS,
    "A runtime": BACKENDS,
    "An export format": FORMATS,
}


def entry(section: str) -> dict[str, Any]:
    """Run a section's code and return its row."""
    text = (DOCS / "extending.md").read_text().split(f"## {section}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {
        "AgentKind": AgentKind, "Reward": Reward, "Format": Format, "file_writer": file_writer,
        "partial": partial,
    }  # fmt: skip
    (row,) = [block for block in blocks if block.startswith('"')]
    for block in blocks:
        if block is not row:
            assert len([line for line in block.splitlines() if line]) <= 16
            exec(block, names)
    return eval(f"{{{row}}}", names)


def test_every_table_has_a_section() -> None:
    headings = re.findall(r"^## (.*)$", (DOCS / "extending.md").read_text(), re.MULTILINE)
    assert headings == ["Without a change here", *TABLES]


def own_module(cwd: Path) -> None:
    """Write the code of all sections into ``mine.py``, that of the first section last."""
    first, *others = (DOCS / "extending.md").read_text().split("\n## ")[1:]
    blocks = [b for part in (*others, first) for b in re.findall(r"```python\n(.*?)```", part, re.DOTALL)]
    code = [block for block in blocks if not block.startswith('"')]
    (cwd / "mine.py").write_text("\n".join(code) + "\nfrom mynet import make as make_net\n")


def test_parts_of_ones_own_are_named_by_dotted_paths(tmp_path: Path) -> None:
    cwd = workspace(tmp_path)
    own_module(cwd)
    section = (DOCS / "extending.md").read_text().split("\n## ")[1]
    parts = next(block for block in section.split("```") if block.startswith("\namc "))
    words = [word for line in re.findall(r"^amc (.*)$", parts, re.MULTILINE) for word in line.split()]
    assert len(words) >= 10
    small = [word for word in TINY if not word.startswith(("data", "model="))]
    small += ["data.calibration=16", "data.search_val=16", "budget.round_to=1"]
    stages = "stages=[train,search,prune,export,benchmark]"
    done(*words, *small, "run_dir=run", stages, cwd=cwd)
    assert len(read_lines(cwd / "run/search.jsonl")) == 4
    assert (cwd / "run/exports/model.pt2").exists()
    refused(amc_command("run_dir=run", "agent.name=mine.nothing", cwd=cwd), "mine has no 'nothing'")
    memory = cwd / "run/overrides.json"
    memory.write_text(memory.read_text().replace('"signature": "', '"signature": "0'))
    refused(amc_command("run_dir=run", cwd=cwd), "names code")


def test_an_agent_searches(tmp_path: Path) -> None:
    cwd = workspace(tmp_path)
    with registered(AGENTS, **entry("An agent")):
        done(*TINY, "run_dir=run", "agent=random", "agent.name=narrow", "stages=[train,search]", cwd=cwd)
    assert len(read_lines(cwd / "run/search.jsonl")) == 4


def test_a_reward_scores(tmp_path: Path) -> None:
    cwd = workspace(tmp_path)
    with registered(REWARDS, **entry("A reward")):
        job = (*TINY, "run_dir=run", "agent=greedy", "reward=accuracy_per_mac", "stages=[train,search]")
        done(*job, cwd=cwd)
    (line,) = read_lines(cwd / "run/search.jsonl")
    assert line["return"] == pytest.approx(line["top1"] / 100 - 0.1 * line["macs_ratio"])


def test_a_data_set_is_built() -> None:
    with registered(datasets.BUILDERS, **entry("A data set")):
        splits = datasets.build("stripes", image_size=8, seed=0)
    assert splits.search_val.images.shape == (32, 3, 8, 8)
    assert len(splits.calibration) == 16
    images, labels = next(iter(splits.train_batches(0, 0)))
    assert len(images) == len(labels) == 16


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 4),
    ).eval()  # fmt: skip


def test_a_runtime_is_timed() -> None:
    with registered(BACKENDS, **entry("A runtime")):
        (found,) = compare(network(), network(), (3, 8, 8), backends=["exported"], rounds=2)
    assert found.comparison is not None
    assert found.comparison.dense.median_ms > 0


def test_an_export_format_is_written(tmp_path: Path) -> None:
    with registered(FORMATS, **entry("An export format")):
        kind = FORMATS.find("program")
    written = kind.write(network(), (3, 8, 8), tmp_path / kind.file, amc.export.ExportSettings())
    assert written.path.stat().st_size == written.bytes > 0


def test_the_code_of_the_library_page_runs(tmp_path: Path) -> None:
    images = torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    names: dict[str, Any] = {
        "amc": amc, "model": network(), "make_net": network, "calibration": images[:16],
        "validation": (images[16:], torch.arange(32) % 4), "folder": tmp_path / "out", "TD3": TD3,
    }  # fmt: skip
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "library.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, names)
        assert names["result"].strategy.macs_ratio <= 0.5
    assert torch.equal(names["again"](images), amc.load_pruned(tmp_path / "out", network())(images))


BROKEN = """
from agents import SearchResult


def forgets(*arguments):
    pass


def raises(*arguments):
    raise RuntimeError("no\\nidea")


def finds_nothing(envs, episodes, seed, on_episode):
    return SearchResult("nothing", episodes, None)

"""


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "agent.name=faulty.forgets",
            "agent 'faulty.forgets' returned NoneType; expected agents.SearchResult",
        ),
        ("agent.name=faulty.raises", "agent 'faulty.raises' fails: RuntimeError: no idea"),
        (
            "agent.name=faulty.finds_nothing",
            "agent 'faulty.finds_nothing' returned a best episode that it has not given to on_episode",
        ),
        ("reward=unreadable.score", "reward 'unreadable.score' cannot be imported: SyntaxError"),
    ],
)
def test_a_part_of_ones_own_that_fails_is_one_line(override: str, message: str, tmp_path: Path) -> None:
    cwd = workspace(tmp_path)
    (cwd / "faulty.py").write_text(BROKEN)
    (cwd / "unreadable.py").write_text("def score(:\n")
    job = [word for word in TINY if not word.startswith("agent")]
    refused(amc_command(*job, "agent=random", override, "stages=[train,search]", cwd=cwd), message)
