"""The workarounds of Hydra change nothing but the time; they were written for Hydra 1.3."""

from __future__ import annotations

import copy
from pathlib import Path

import hydra
import pytest
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

import conf
from experiments.command.quick_hydra import may_set_mode
from experiments.main import prepare_hydra
from tests.experiments.helpers import TINY, amc, done, refused

prepare_hydra()


def test_the_version_is_the_one_that_was_looked_at() -> None:
    assert hydra.__version__.startswith("1.3.")


def test_a_copied_store_is_the_store_and_its_nodes_are_copies() -> None:
    store = ConfigStore.instance()
    assert copy.deepcopy(store) is store
    node = store.load("schema.yaml").node
    node.seed = 77
    assert store.load("schema.yaml").node.seed != 77


def test_no_option_sets_the_mode() -> None:
    for path in Path(conf.__file__).parent.rglob("*.yaml"):
        assert OmegaConf.select(OmegaConf.load(path), "hydra.mode") is None, path


@pytest.mark.parametrize(
    ("overrides", "folder", "expected"),
    [
        (["seed=1", "stages=[hydra]"], None, False),
        (["seed=1", "hydra.mode=MULTIRUN"], None, True),
        (["+hydra.mode=RUN"], None, True),
        (["hydra/launcher=joblib"], None, True),
        (["seed=1"], "mine", True),
    ],
)
def test_the_mode_is_only_looked_for_where_it_can_be_set(
    overrides: list[str], folder: str | None, expected: bool
) -> None:
    sources = ConfigSearchPathImpl()
    for provider in ("hydra", "main", "schema"):
        sources.append(provider, "pkg://conf")
    if folder is not None:
        sources.prepend("command-line", f"file://{folder}")
    assert may_set_mode(overrides, sources) is expected


@pytest.mark.slow
def test_a_mode_that_the_user_sets_is_followed(cwd: Path) -> None:
    done(*TINY, "stages=[inspect]", "seed=choice(0)", "hydra.mode=MULTIRUN", "hydra.sweep.dir=given", cwd=cwd)
    (cwd / "mine/experiment").mkdir(parents=True)
    (cwd / "mine/experiment/many.yaml").write_text("# @package _global_\nhydra: {mode: MULTIRUN}\n")
    mine = ("--config-dir", "mine", "experiment=many", "hydra.sweep.dir=found")
    done(*mine, *TINY, "stages=[inspect]", "seed=choice(0)", cwd=cwd)
    for folder in ("given", "found"):
        assert {path.name for path in (cwd / folder).iterdir() if path.is_dir()} == {"0_s0"}
    refused(amc(*TINY, "stages=[inspect]", "seed=0,1", cwd=cwd), "seed=0,1", "--multirun")
