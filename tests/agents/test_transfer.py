"""What searches of some networks teach the search of another."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from agents.transfer import (
    Experience,
    actor_bytes,
    experience_bytes,
    load_actor,
    load_experience,
    train_actor,
)
from amc.errors import FileError, SettingError
from experiments.config.agents import check_agent, make_agent
from experiments.config.presets import agent_preset
from experiments.pretrain import pretrain
from tests.agents.offpolicy.test_imagination import arena
from tests.agents.test_thompson import GROUPS


def network(groups, seed):
    """Curves are too flat in deep groups: their factors grow with the first feature."""
    random = np.random.default_rng(seed)
    observations = random.random((groups, 12), np.float32)
    observations[:, 0] = np.linspace(0, 1, groups)
    factors = np.exp(observations[:, 0] - 0.5 + random.normal(0, 0.05, groups))
    return Experience(observations, factors, np.full(groups, 0.1))


def test_an_actor_learns_what_networks_have_in_common():
    actor = train_actor([network(groups, seed) for seed, groups in enumerate((9, 14, 27))], seed=0)
    unseen = network(19, 7)
    logs = np.log(np.array(actor.factors(unseen.observations)))
    truth = np.log(unseen.factors)
    assert np.corrcoef(logs, truth)[0, 1] > 0.8
    assert np.square(logs - truth + truth.mean()).mean() < 0.5 * truth.var()


@pytest.mark.slow
def test_without_anything_in_common_it_corrects_little():
    random = np.random.default_rng(0)
    unrelated = [
        replace(network(12, seed), factors=np.exp(random.normal(0, 0.3, 12)), deviations=np.full(12, 0.3))
        for seed in range(3)
    ]
    actor = train_actor(unrelated, seed=0)
    assert np.std(np.log(actor.factors(network(12, 9).observations))) < 0.3


def test_the_scale_of_a_networks_factors_does_not_count():
    one = network(9, 0)
    other = replace(one, factors=3.0 * one.factors, deviations=3.0 * one.deviations)
    pair = [train_actor([own], seed=0).factors(one.observations) for own in (one, other)]
    assert pair[0] == pytest.approx(pair[1], rel=1e-3)


@pytest.mark.slow
def test_same_seed_same_actor():
    pair = [train_actor([network(9, 0)], seed=1).factors(network(9, 3).observations) for _ in range(2)]
    assert pair[0] == pair[1]


def test_files_give_back_what_was_written(tmp_path):
    actor, own = train_actor([network(9, 0)], seed=0), network(9, 1)
    (tmp_path / "actor.safetensors").write_bytes(actor_bytes(actor, ["one"]))
    assert load_actor(tmp_path / "actor.safetensors").factors(own.observations) == actor.factors(
        own.observations
    )
    (tmp_path / "experience.safetensors").write_bytes(experience_bytes(own, "net"))
    found, name = load_experience(tmp_path / "experience.safetensors")
    assert name == "net"
    assert (found.factors == own.factors).all()
    assert (found.observations == own.observations).all()


def test_an_actor_that_cannot_be_written_is_told_in_one_line(tmp_path):
    (tmp_path / "experience.safetensors").write_bytes(experience_bytes(network(9, 0), "net"))
    with pytest.raises(FileError, match="cannot write: No such file"):
        pretrain([tmp_path], tmp_path / "none" / "actor.safetensors")


def test_a_folder_without_experience_names_those_in_it_or_what_would_do(tmp_path):
    out = tmp_path / "actor.safetensors"
    with pytest.raises(
        ValueError, match=r"a search that met at least 5 different.*run stages=\[search\] agent="
    ):
        pretrain([tmp_path], out)
    parts = [tmp_path / name for name in ("macs_0.30", "macs_0.50", "steps/1", "macs_0.30/steps/2")]
    for part in parts:
        part.mkdir(parents=True, exist_ok=True)
        (part / "experience.safetensors").write_bytes(experience_bytes(network(9, 0), "net"))
    with pytest.raises(ValueError, match=r"has no experience\.safetensors itself") as caught:
        pretrain([tmp_path], out)
    assert str(caught.value).endswith(" ".join(map(str, parts)))
    pretrain(parts[:1], out)


def test_other_files_are_refused_in_one_line(tmp_path):
    path = tmp_path / "file.safetensors"
    with pytest.raises(ValueError, match=r"cannot be read as an actor.*No such file"):
        load_actor(path)
    path.write_bytes(b"rubbish")
    for load in (load_actor, load_experience):
        with pytest.raises(ValueError, match="cannot be read"):
            load(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="no actor of experiments"):
        load_actor(path)
    with pytest.raises(ValueError, match="cannot be read"):
        load_experience(path)
    bad = replace(network(9, 0), factors=np.full(9, np.nan))
    path.write_bytes(experience_bytes(bad, "net"))
    with pytest.raises(ValueError, match="damaged"):
        load_experience(path)


def trained_on_the_same(tmp_path):
    """Return the file of an actor that knows the true factors of the toy network."""
    episodes = []
    make_agent(agent_preset("thompson", episodes=40, prior=0.7), arena(), 0)(1, episodes.append)
    experience = arena().experience(episodes)
    path = tmp_path / "actor.safetensors"
    path.write_bytes(actor_bytes(train_actor([experience], seed=0), ["toy"]))
    return path


@pytest.mark.parametrize("name", ["ddpg", pytest.param("thompson", marks=pytest.mark.slow)])
def test_a_pretrained_search_starts_above_the_greedy_allocation(tmp_path, name):
    path = trained_on_the_same(tmp_path)
    plain, taught = [], []
    make_agent(agent_preset(name, episodes=1), arena(), 0)(1, plain.append)
    make_agent(agent_preset(name, episodes=1, pretrained=str(path)), arena(), 0)(1, taught.append)
    assert taught[0].value > plain[0].value
    assert plain[0].info["evaluation"].widths == arena().greedy()


@pytest.mark.slow
def test_an_actor_is_refused_where_it_has_no_effect(tmp_path):
    path = str(trained_on_the_same(tmp_path))
    with pytest.raises(SettingError, match="agent=random learns no weights"):
        check_agent(agent_preset("random", pretrained=path), "obs")
    with pytest.raises(SettingError, match="decides ratios"):
        make_agent(agent_preset("ddpg", pretrained=path, acts="ratios"), arena(), 0)


@pytest.mark.slow
def test_an_experience_tells_which_curves_are_wrong():
    episodes = []
    make_agent(agent_preset("thompson", episodes=40, prior=0.7), arena(), 0)(1, episodes.append)
    found = arena().experience(episodes)
    assert found.observations.shape == (GROUPS, 12)
    assert np.corrcoef(np.log(found.factors), np.log([2.0, 0.5, 1.0, 0.4, 2.5, 1.0]))[0, 1] > 0.9
