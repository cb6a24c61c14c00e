from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import conf
from envs import get_reward
from envs.reward import REWARDS
from experiments.config import schema
from experiments.config.agents import AGENTS
from experiments.config.sections.agents import AGENT_SECTIONS, AgentConfig
from experiments.config.sections.data import ImageFolderData
from experiments.config.stages import STAGES
from tests.experiments.helpers import FAKE, Outcome, amc, composed, done, refused
from tests.params import slow

CONF = Path(conf.__file__).parent
OPTIONS = sorted(
    path.relative_to(CONF)
    for path in CONF.rglob("*.yaml")
    if path.name != "config.yaml" and path.parent.name != "sweep"  # those are files for wandb
)


@pytest.fixture(scope="module")
def help_text(tmp_path_factory: pytest.TempPathFactory) -> str:
    return done("--help", cwd=tmp_path_factory.mktemp("help")).out


def examples(help_text: str) -> list[list[str]]:
    lines = re.findall(r"^ +amc( .*|)$", help_text.partition("Examples:")[2], re.MULTILINE)
    return [shlex.split(re.split(r"   +", line)[0]) for line in lines]


# --- yaml files


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_every_yaml_composes_against_the_schema(option: Path) -> None:
    group = option.parent.as_posix()
    needed = ["data.factory=mine.make"] if option == Path("data/own.yaml") else []
    config = composed(f"{group}={option.stem}", *needed)
    assert set(config.stages) <= set(STAGES)
    assert config.agent.name in AGENTS
    assert get_reward(config.reward).name == config.reward
    chosen = {"data": config.data.name, "agent": config.agent.name, "tracker": config.tracker.name}
    assert option.stem.startswith(chosen.get(group, option.stem))  # ddpg_paper is a preset of ddpg


EXPERIMENTS = sorted((CONF / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("file", [EXPERIMENTS[0], *map(slow, EXPERIMENTS[1:])], ids=lambda file: file.stem)
def test_an_experiment_runs_with_the_settings_of_its_file(file: Path) -> None:
    assert "# @package _global_\n" in file.read_text()
    said = OmegaConf.load(file)
    said.pop("defaults", None)
    config = OmegaConf.to_container(OmegaConf.structured(composed(f"experiment={file.stem}")))
    assert OmegaConf.to_container(OmegaConf.merge(config, said)) == config


def test_options_of_a_group_have_the_type_of_that_option() -> None:
    assert composed("agent=ddpg_paper").agent == AGENT_SECTIONS["ddpg"](episodes=400, warmup_episodes=100)
    assert composed("agent=ddpg").agent.guide == "greedy"
    assert type(composed("agent=random").agent) is AgentConfig
    assert composed("data=imagefolder").data == ImageFolderData()
    budget = composed("budget=params").budget
    assert (budget.kind, budget.params_ratio, budget.macs_ratio) == ("params", 0.5, None)


@pytest.mark.parametrize(
    "name",
    [
        "resnet56",
        "resnet18",
        "timm:vit_tiny",
        "torchvision:vgg16_bn",
        "my_package.make_net",
        "my_package.nets:make",
    ],
)
def test_a_model_needs_no_yaml_file(name: str) -> None:
    assert composed(f"model={name}").model == schema.ModelConfig(name=name)


@pytest.mark.slow
def test_a_torchvision_name_is_built(tmp_path: Path) -> None:
    outcome = done(*FAKE, "model=squeezenet1_1", "data.image_size=32", "stages=[inspect]", cwd=tmp_path)
    assert re.search(r"dense \d+\.\d\dM MACs", outcome.out)


# --- typing errors


def with_yaml(folder: Path, text: str) -> Outcome:
    (folder / "mine" / "experiment").mkdir(parents=True)
    (folder / "mine" / "experiment" / "bad.yaml").write_text(f"# @package _global_\n{text}\n")
    return amc("--config-dir", "mine", "experiment=bad", *FAKE, "stages=[plan]", "run_dir=run", cwd=folder)


def test_a_users_own_experiment_file_is_found(tmp_path: Path) -> None:
    assert with_yaml(tmp_path, "seed: 77").status == 0
    assert OmegaConf.load(tmp_path / "run/.hydra/config.yaml").seed == 77


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("sede: 1", "sede"),
        ("budget: {macs_ration: 0.5}", "macs_ration"),
        ("train: {epoch: 3}", "epoch"),
        ("agent: {sigmma: 0.5}", "sigmma"),
    ],
)
def test_a_typo_in_a_yaml_names_the_key(tmp_path: Path, text: str, key: str) -> None:
    refused(with_yaml(tmp_path, text), key)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("sede=1", "sede"),
        ("budget.macs_ration=0.5", "macs_ration"),
        ("agent.sigmma=0.5", "sigmma"),
        ("data.rooot=x", "rooot"),
        ("trcker=none", "trcker"),
        ("+train.epoch=3", "epoch"),
        ("seed=abc", "seed"),
        ("train.epochs=two", "two"),
        ("budget.macs_ratio=[", "macs_ratio"),
        ("nonsense", "nonsense"),
    ],
)
def test_a_typo_in_an_override_names_the_key(tmp_path: Path, override: str, key: str) -> None:
    refused(amc(override, "run_dir=run", "stages=[]", cwd=tmp_path), key)
    assert not list(tmp_path.glob("run/*.json"))


# --- help


def test_help_names_all_options(help_text: str) -> None:
    words = set(re.findall(r"[\w.]+", help_text))
    groups = {option.parent.as_posix() for option in OPTIONS if option.parts[0] != "hydra"}
    assert groups | {option.stem for option in OPTIONS} <= words
    assert set(REWARDS) <= words
    assert set(STAGES) <= words


def test_the_examples_of_the_help_compose(help_text: str) -> None:
    assert len(examples(help_text)) >= 5
    for example in examples(help_text):
        assert set(composed(*example).stages) <= set(STAGES)


def test_a_recipe_wins_over_an_experiment_and_the_command_line_over_both() -> None:
    asked = ("experiment=resnet56_cifar10", "data.root=.")
    assert composed(*asked).finetune.epochs == 1
    recipe = composed(*asked, "finetune=cifar10").finetune
    assert (recipe.epochs, recipe.lr, recipe.ema) == (60, 0.05, 0.998)
    assert composed(*asked, "finetune=cifar10", "finetune.epochs=7").finetune.epochs == 7
