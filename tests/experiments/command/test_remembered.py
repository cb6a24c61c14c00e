"""Overrides as they are typed, remembered and read again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.types import Quote, QuotedString

import conf
from amc.budget.budget import KINDS
from amc.errors import AmcError
from amc.training.resume import save_checkpoint
from experiments.command.memory.identity import remembering
from experiments.command.memory.remembered import check_named, remembered_value, with_remembered
from experiments.command.memory.signature import sign
from experiments.command.overrides import absolute, key_of, readable, text_of
from experiments.config.schema import path_keys, rules
from tests.experiments.helpers import FAKE, TINY, amc, composed, done, read_json, refused, workspace

ODD = ["out (1)", "Bücher", "a,b", "it's", "back\\slash", "tail\\", "a=b", "~x", "null", "12", "1e3", "a  b"]


def test_every_field_that_names_a_file_is_known() -> None:
    assert path_keys() == {
        "agent.pretrained", "data.root", "finetune.teacher", "finetune.teacher_cache", "latency.adb.runner",
        "model.checkpoint", "model.start", "profile.tables", "schedule.rewind", "strategy", "train.teacher",
        "train.teacher_cache",
    }  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_paths_are_remembered_absolutely_and_read_back(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    typed = QuotedString(str(path), Quote.single).with_quotes()
    override = absolute(f"profile.tables={typed}", {"profile.tables"})
    assert text_of(override) == str(path)
    assert absolute(override, {"profile.tables"}) == override


def test_values_that_name_no_file_stay_as_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for override in ("seed=1", "strategy=null", "strategy=${name}/x", "name='a (1)'", "data.root="):
        assert absolute(override, {"strategy", "data.root"}) == override
    assert absolute("+data.root=here", {"data.root"}) == f"+data.root={tmp_path}/here"


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("run_dir=plain/x", "plain/x"),
        ("run_dir=Bücher (1)", "Bücher (1)"),
        ("run_dir=out(1)", "out(1)"),
        ("run_dir='out (1)'", "out (1)"),
        ('run_dir="a,b"', "a,b"),
        ("run_dir=~/x", "/home/me/x"),
        ("run_dir='~/x y'", "/home/me/x y"),
        ("run_dir=~/ü", "/home/me/ü"),
        ("run_dir=a,b", "a,b"),
        ("run_dir=[x]", "[x]"),
        ("run_dir={x: 1}", "{x: 1}"),
        ("run_dir='open", "'open"),
        ("run_dir=it's (1)", "it's (1)"),
        ("run_dir=${name}/x", None),
        *((f"run_dir={text}", text) for text in ("2024_05_01", "1.10", "1e3", "true", "False", "12")),
    ],
)
def test_odd_paths_are_quoted_for_hydra(
    typed: str, read: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    argument, other = readable([typed, "name=ü"], {"run_dir"})
    assert text_of(argument) == read
    assert other == "name=ü"
    if read in (None, "plain/x", "out (1)"):
        assert argument == typed


@pytest.mark.parametrize("typed", ["data.root=a,b", "data.root='a'", "data.root='open"])
def test_commas_and_quotes_of_many_jobs_are_left_to_hydra(typed: str) -> None:
    assert readable(["-m", typed], {"data.root"}) == ["-m", typed]


def test_a_number_is_a_name_in_a_multirun_too() -> None:
    given = ["-m", "hydra.sweep.dir=2024_05", "data.root=1.10,2", "strategy=null"]
    expected = ["-m", "hydra.sweep.dir='2024_05'", *given[2:]]
    assert readable(given, {"hydra.sweep.dir", "data.root", "strategy"}) == expected


@pytest.mark.parametrize("typed", ["run_dir='out (1)'", '+run_dir="out (1)"', "++run_dir=out (1)"])
def test_a_quoted_run_folder_is_found_again(
    typed: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "out (1)"
    folder.mkdir()
    with remembering(folder, ["run_dir='out (1)'", "seed=3", "stages=[train]"], paths=()):
        pass
    (argument,) = readable([typed], {"run_dir"})
    assert with_remembered([argument, "name=x"]) == ["seed=3", "stages=[train]", argument, "name=x"]


@pytest.mark.parametrize("name", ["dense.safetensors", "search.jsonl", "strategy.json"])
def test_results_of_an_unknown_job_are_not_overwritten(name: str, tmp_path: Path) -> None:
    assert with_remembered([f"run_dir={tmp_path}"]) == [f"run_dir={tmp_path}"]
    (tmp_path / name).touch()
    with pytest.raises(AmcError, match=f"holds {name} of an unknown job"):
        with_remembered([f"run_dir={tmp_path}"])


def test_a_plan_is_no_stage_to_go_on_with(tmp_path: Path) -> None:
    for seed, stages in ((3, "plan"), (4, "train"), (5, "plan")):
        with remembering(tmp_path, [f"seed={seed}", f"stages=[{stages}]"], paths=()) as identity:
            identity.accept()
        expected = 3 if seed == 3 else 4
        assert with_remembered([f"run_dir={tmp_path}"]) == [f"seed={expected}", f"run_dir={tmp_path}"]
    left = {"overrides": ["seed=4"], "stages": "stages=[plan]", "unfinished": None}
    (tmp_path / "overrides.json").write_text(json.dumps(left | {"signature": sign(left)}))  # of old
    assert "stages=[plan]" not in with_remembered([f"run_dir={tmp_path}"])


def test_settings_of_a_folder_that_only_the_configuration_names_are_not_forgotten(tmp_path: Path) -> None:
    with remembering(tmp_path, ["seed=3", "agent.sigma=0.2", "stages=[train]"], paths=()) as identity:
        identity.accept()
    assert (remembered_value(tmp_path, "seed"), remembered_value(tmp_path, "name")) == ("3", None)
    message = f"remembers agent.sigma=0.2: write run_dir={tmp_path} to use"
    for given in ([], ["run_dir=runs/${name}"]):
        with pytest.raises(AmcError, match=message):
            check_named(tmp_path, [*given, "seed=4"])
    check_named(tmp_path, ["run_dir=runs/${name}", "seed=4", "agent.sigma=0.3"])
    check_named(tmp_path, [f"run_dir={tmp_path}", "seed=4"])


def test_the_command_refuses_a_folder_of_a_name_that_the_configuration_makes(tmp_path: Path) -> None:
    (tmp_path / "p_foo").mkdir()
    with remembering(tmp_path / "p_foo", ["name=foo", "seed=3"], paths=()) as identity:
        identity.accept()
    outcome = amc("run_dir=p_${name}", "name=foo", cwd=tmp_path)
    refused(outcome, "run_dir=p_${name} is a folder that remembers seed=3: write run_dir=p_foo to use")


def test_what_is_read_of_the_environment_is_remembered_as_it_was(
    cwd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TABLES", "it's (x)")
    monkeypatch.setenv("STAGE", "inspect")
    given = ("profile.tables=${oc.env:TABLES}", "name='${oc.env:TABLES}'", "stages=[${oc.env:STAGE}]")
    done(*TINY, "train.lr=${finetune.lr}", *given, "run_dir=run", cwd=cwd)
    memory = read_json(cwd / "run/overrides.json")
    filled = [f"profile.tables='{cwd}/it\\'s (x)'", "name='it\\'s (x)'"]
    assert memory["overrides"] == [*TINY, "train.lr=${finetune.lr}", *filled]
    assert memory["stages"] == "stages=[inspect]"
    monkeypatch.delenv("TABLES")
    monkeypatch.delenv("STAGE")
    done("run_dir=run", cwd=cwd)
    refused(amc("run_dir=run", "name=${oc.env:TABLES}", cwd=cwd), "variable 'TABLES' not found")


def test_the_configuration_of_a_folder_is_remembered(cwd: Path) -> None:
    (cwd / "own/my-presets").mkdir(parents=True)
    (cwd / "own/my-presets/fast.yaml").write_text("# @package _global_\nseed: 5\n")
    ours = (Path(conf.__file__).parent / "config.yaml").read_text()
    (cwd / "own/based.yaml").write_text(ours.replace("name: default", "name: based"))
    options, place = ["--config-name=based", f"--config-dir={cwd}/own"], f"run_dir={cwd}/run"
    job = (*TINY, "+my-presets=fast", "stages=[inspect]")
    done("--config-dir", "own", "-cn", "based", *job, "run_dir=run", cwd=cwd)
    memory = read_json(cwd / "run/overrides.json")
    assert memory["options"] == options
    for name, value in (("name", "based"), ("seed", "5")):
        assert done("run_dir=run", "--cfg", "job", "-p", name, cwd=cwd).out == f"{value}\n"
    assert with_remembered(["-cd", "x", place])[:1] == options[:1]
    refused(amc("run_dir=${name}", "name=run", cwd=cwd), "remembers --config-name=based, --config-dir=")
    (cwd / "run/overrides.json").write_text(json.dumps({**memory, "signature": None}))
    reason = "--config-name=based (says which configuration is read), --config-dir="
    refused(amc("run_dir=run", cwd=cwd), reason, "give --config-name=... --config-dir=...")
    done("-m", "--config-dir", "own", "-cn", "based", *job, "hydra.sweep.dir=many", cwd=cwd)
    assert read_json(cwd / "many/0_s5/overrides.json")["options"] == options
    command = read_json(cwd / "many/0_s5/provenance.json")["command"]
    assert command.startswith(f"amc {' '.join(options)} data=fake ")


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("stages=['a b']", "cannot remember \"stages=['a b']\"; expected"),
        ("reward='caf\udce9.score'", "is no text in UTF-8"),
    ],
)
def test_what_a_folder_could_not_remember_is_refused_before_any_work(
    setting: str, told: str, tmp_path: Path
) -> None:
    refused(amc(setting, "run_dir=run", cwd=tmp_path), told)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_none_of_a_run_is_refused(tmp_path: Path) -> None:
    refused(amc("run_dir=", *TINY, "stages=[inspect]", cwd=tmp_path), "run_dir is empty", "variable")
    assert list(tmp_path.iterdir()) == []
    refused(amc("-m", *TINY, "hydra.sweep.dir=", cwd=tmp_path), "hydra.sweep.dir is empty")
    (tmp_path / "multirun.yaml").touch()
    with pytest.raises(AmcError, match="folder of a multirun"):
        with_remembered([f"run_dir={tmp_path}"])


LEFT = ("dense.safetensors", "train.ckpt.safetensors", "evaluations.jsonl", "size_0.12/strategy.json")


@pytest.mark.parametrize("left", [*LEFT, None])
def test_a_first_command_is_remembered_when_it_fails_after_it_left_anything(
    left: str | None, tmp_path: Path
) -> None:
    def command() -> None:
        with remembering(tmp_path, ["seed=3", "stages=[train,search]"], paths=()) as identity:
            identity.accept()
            if left is not None:
                (tmp_path / left).parent.mkdir(exist_ok=True)
                (tmp_path / left).touch()
            raise AmcError("refused")

    with pytest.raises(AmcError, match="refused"):
        command()
    expected = ["seed=3", "stages=[train,search]"] if left else []
    assert with_remembered([f"run_dir={tmp_path}"]) == [*expected, f"run_dir={tmp_path}"]


@pytest.mark.parametrize("kind", [*KINDS, "density"])
def test_a_later_command_is_remembered_when_it_fails_after_a_budget_has_results(
    kind: str, tmp_path: Path
) -> None:
    def command(*overrides: str, fails: bool) -> None:
        with remembering(tmp_path, overrides, paths=()) as identity:
            identity.accept()
            if fails:
                (tmp_path / f"{kind}_0.30").mkdir()
                (tmp_path / f"{kind}_0.30/strategy.json").touch()
                raise AmcError("refused")

    command("seed=3", fails=False)
    with pytest.raises(AmcError, match="refused"):
        command("seed=4", fails=True)
    assert with_remembered([f"run_dir={tmp_path}"])[:-1] == ["seed=4"]


def test_a_training_that_fails_on_the_way_goes_on_with_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cwd, job = workspace(tmp_path), (*TINY, "train.epochs=2", "run_dir=run", "stages=[train]")
    with monkeypatch.context() as broken:

        def save(*arguments: Any, **settings: Any) -> None:
            save_checkpoint(*arguments, **settings)
            raise AmcError("the disk is full; the same command goes on")

        broken.setattr("amc.training.loop.save_checkpoint", save)
        refused(amc(*job, cwd=cwd), "the disk is full; the same command with run_dir=run goes on")
    assert (cwd / "run/train.ckpt.safetensors").exists()
    done(*job, cwd=cwd)
    assert (cwd / "run/dense.safetensors").exists()


@pytest.mark.parametrize(
    ("before", "given", "dropped"),
    [
        (["agent=ddpg", "agent.sigma=0.3", "seed=3"], "agent=greedy", ["agent.sigma=0.3"]),
        (["finetune.epochs=2", "train.epochs=3"], "finetune=cifar10", ["finetune.epochs=2"]),
        (["budget.macs_ratio=0.5", "++budget.round_to=1"], "budget=params", [0, 1]),
        (["agent=random", "agent.episodes=6"], "agent=random", []),
        (["agent=random", "agent.episodes=6"], "agent.patience=2", []),
        (["model=plain20", "model.kwargs.width=2", "agentx.y=1"], "model=resnet20", [1]),
        (["model.kwargs.width=2"], "model=resnet20", []),  # the default option
        (["model.kwargs.width=2"], "model=resnet32", [0]),
        (["finetune.epochs=2"], "finetune=null", []),
        (["finetune=cifar10", "finetune.epochs=2"], "finetune=null", [1]),
        (["experiment=plain20_cifar10", "data.search_val=9"], "data=cifar10", []),  # of another experiment
        (["experiment=plain20_cifar10", "model.kwargs.x=1"], "model=resnet20", [1]),
        (["experiment=resnet20_cifar10", "data.search_val=9"], "data=digits", [1]),
        (["experiment=mine", "data.search_val=9"], "data=digits", [1]),
        (["model.pretrained=true", "model.name=x"], "model.checkpoint=f.pth", [0]),
        (["model.checkpoint=/f.pth"], "model.pretrained=true", [0]),
        (["model.start=/f.pth", "model.pretrained=false"], "model.checkpoint=f.pth", [0]),
        (["model.pretrained=true"], "model.checkpoint=null", []),
    ],
)
def test_keys_of_a_group_go_with_its_option(
    before: list[str],
    given: str,
    dropped: list[str | int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with remembering(tmp_path, before, paths=()) as identity:
        identity.accept()
    gone = [before[each] if isinstance(each, int) else each for each in dropped]
    kept = [each for each in before if each not in gone and key_of(each) != key_of(given)]
    place = f"run_dir={tmp_path}"
    assert with_remembered([place, given], rules()) == [*kept, place, given]
    told = f"{place}: {given} takes the place of {', '.join(gone)}, which it remembered\n" if gone else ""
    assert capsys.readouterr().out == told


@pytest.mark.parametrize(
    ("before", "given", "kwargs"),
    [
        ("++model.kwargs={depth: 2}", "++model.kwargs.depth=4", {"depth": 4}),
        ("++model.kwargs.depth=2", "++model.kwargs={depth: 4}", {"depth": 4}),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_given_settings_win_over_remembered_ones_that_hold_them(
    before: str, given: str, kwargs: dict[str, int], first: bool, tmp_path: Path
) -> None:
    with remembering(tmp_path, [before], paths=()) as identity:
        identity.accept()
    place = f"run_dir={tmp_path}"
    arguments = with_remembered([given, place] if first else [place, given], rules())
    assert composed(*arguments).model.kwargs == kwargs


def test_another_agent_searches_with_its_own_settings(trained_run: Path) -> None:
    job = ("run_dir=run", "stages=[search]")
    done(*job, "agent=ddpg", "agent.sigma=0.3", cwd=trained_run)
    out = done(*job, "agent=greedy", cwd=trained_run).out
    assert "agent=greedy takes the place of" in out
    assert "agent.sigma=0.3" in out
    assert not any("sigma" in each for each in read_json(trained_run / "run/overrides.json")["overrides"])
    assert read_json(trained_run / "run/strategy.json")["provenance"]["agent"] == "greedy"


@pytest.mark.slow
def test_a_job_in_an_odd_folder_is_continued(tmp_path: Path) -> None:
    folder = tmp_path / "Läufe (1), zwei"
    settings = (*FAKE, "model=resnet20", "train.epochs=1", "seed=5", f"profile.tables={tmp_path}/Tafeln (ü)")
    done(*settings, "run_dir='Läufe (1), zwei'", "stages=[train]", cwd=tmp_path)
    weights = (folder / "dense.safetensors").read_bytes()
    done("run_dir='Läufe (1), zwei'", "stages=[inspect]", cwd=tmp_path)
    assert (folder / "dense.safetensors").read_bytes() == weights
    remembered = read_json(folder / "overrides.json")["overrides"]
    assert "seed=5" in remembered
    assert f"profile.tables='{tmp_path}/Tafeln (ü)'" in remembered
    assert json.loads((folder / "provenance.json").read_text())["seed"] == 5
    (folder / "overrides.json").unlink()
    refused(amc(*settings, "run_dir='Läufe (1), zwei'", cwd=tmp_path), "unknown job", "Läufe (1), zwei")
