import json
import shutil

import pytest

from experiments.config.schema import Config, rules
from experiments.run.folder import RunFolder
from experiments.run.reports import has_current_report
from experiments.words.installed import runs
from experiments.words.lists import matching
from experiments.words.options import PAGE, keys, with_tables
from tests.experiments.helpers import amc, done, read_json, refused


def test_the_version_is_told(tmp_path):
    from amc import __version__

    assert done("version", cwd=tmp_path).out == f"amc-search {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "found", "missing"),
    [
        (["agents"], ["ddpg", "greedy", "thompson"], ["base_ddpg"]),
        (["agents", "gr"], ["greedy"], ["ddpg"]),
        (["rewards"], ["likeness"], []),
        (["runtimes", "onnx"], ["onnxruntime", "onnxruntime_cuda"], ["torch"]),
        (["stages"], ["plan", "report"], []),
        (["formats", "nothing_like_it"], ["none of the formats matches 'nothing_like_it'"], []),
    ],
)
def test_names_are_listed(tmp_path, arguments, found, missing):
    lines = done("list", *arguments, cwd=tmp_path).out.splitlines()
    assert set(found) <= set(lines)
    assert set(missing).isdisjoint(lines)


@pytest.mark.slow
def test_networks_are_listed(tmp_path):
    lines = done("list", "models", "resnet5?", cwd=tmp_path).out.splitlines()
    assert {"resnet50", "resnet56"} <= set(lines)
    assert {"resnet18", "wide_resnet50_2"}.isdisjoint(lines)


def test_a_pattern_matches_a_part_or_all():
    assert matching(["resnet18", "vgg"], "net") == ["resnet18"]
    assert matching(["resnet18", "vgg"], "net*") == []


def test_a_group_is_explained_with_its_options_and_keys(tmp_path):
    told = done("help", "budget", cwd=tmp_path).out
    assert "budget=macs" in told
    assert "Multiply-adds" in told
    assert "budget.min_preserve_ratio" in told
    assert "Usage: amc" in done("help", cwd=tmp_path).out


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["verison"], ["unknown word 'verison'", "did you mean 'version'?"]),
        (["search"], ["stages=[search]"]),
        (["list", "model"], ["did you mean 'models'?"]),
        (["list"], ["models, agents"]),
        (["list", "models", "resnet20", "vgg"], ["amc list models resnet20 vgg: expected a kind and one"]),
        (["help", "agent", "budget"], ["amc help agent takes no more words; got budget"]),
        (["help", "agnt"], ["did you mean 'agent'?"]),
        (["help", "sweep"], ["no group 'sweep'"]),  # its files are wandb's
        (["compare", "one"], ["expected at least two"]),
        (["compare", "one", "two", "--oot", "x"], ["--oot"]),
        (["compare", "one", "two"], ["one: there is no such folder", "a finished run"]),
    ],
)
def test_a_wrong_word_is_refused_in_one_line_and_leaves_nothing(tmp_path, arguments, parts):
    refused(amc(*arguments, cwd=tmp_path), *parts)
    assert list(tmp_path.iterdir()) == []


def test_the_page_of_options_has_the_keys_of_the_schema():
    page = PAGE.read_text()
    assert page == with_tables(page), "write it again: python -m experiments.words.options"
    assert {key.name for key in keys()} == rules().keys
    assert {key.section for key in keys()} > {"", "agent", "data", "budget"}
    assert next(key.default for key in keys() if key.name == "finetune.epochs") == str(
        Config.__dataclass_fields__["finetune"].default_factory().epochs
    )


@pytest.mark.slow
def test_runtimes_are_tried(capsys):
    found = dict(runs())
    assert found["torch"].startswith("runs, version 2.")
    assert found["onnxruntime"].startswith("runs, version ")
    assert found["adb"].startswith("another device")


def test_runs_are_compared_on_one_page(reported, tmp_path):
    for name in ("one", "two"):
        shutil.copytree(reported / "run", tmp_path / name)
    report = read_json(tmp_path / "two" / "report.json")
    changed = (tmp_path / "two" / "report.json").read_text().replace('"seed": 0', '"seed": 1')
    (tmp_path / "two" / "report.json").write_text(changed)
    told = done("compare", "one", "two", "--out", "both.html", cwd=tmp_path).out
    assert f"{report['macs_ratio']:.1%}" in told
    assert "seed differs: 0 in one, 1 in two" in told
    page = (tmp_path / "both.html").read_text()
    assert 'href="two/report.html"' in page
    assert "seed differs" in page


def test_folders_of_several_runs_and_without_a_report_are_told_what_to_do(tmp_path):
    for name in ("b", "a"):
        (tmp_path / "jobs" / f"macs_{name}").mkdir(parents=True)
        (tmp_path / "jobs" / f"macs_{name}/strategy.json").touch()
    (tmp_path / "one").mkdir()
    message = "jobs holds several runs: expected some of them, jobs/macs_a jobs/macs_b\n"
    refused(amc("compare", "jobs", "one", cwd=tmp_path), message)
    told = "one has no report.json: run amc run_dir=one stages=[report]"
    refused(amc("compare", "one", "jobs", cwd=tmp_path), told)
    (tmp_path / "jobs/strategy.json").touch()  # of a schedule, whose steps have folders, too
    refused(amc("compare", "jobs", "one", cwd=tmp_path), "jobs has no report.json")


def test_the_agent_is_that_which_has_found_the_network(reported, tmp_path):
    for name in ("one", "two"):
        shutil.copytree(reported / "run", tmp_path / name)
    report = read_json(tmp_path / "two/report.json")
    del report["search"]  # as it is left out where a file gave the strategy
    (tmp_path / "two/report.json").write_text(json.dumps({**report, "agent": "evolution"}))
    rows = done("compare", "one", "two", cwd=tmp_path).out.splitlines()
    assert rows[1].split()[1] == report["agent"]
    assert rows[2].split()[1] == "evolution"


def test_a_report_of_a_network_that_the_run_no_longer_has_is_refused(reported, tmp_path):
    for name in ("one", "two"):
        shutil.copytree(reported / "run", tmp_path / name)
    strategy = (tmp_path / "two/strategy.json").read_text()
    changed = json.loads(strategy)
    changed["groups"][0]["kept"] = changed["groups"][0]["dense"]
    (tmp_path / "two/strategy.json").write_text(json.dumps(changed))
    message = (
        "report.json is about a network that two no longer has",
        "amc run_dir=two stages=[report] again",
    )
    refused(amc("compare", "one", "two", cwd=tmp_path), *message)
    (tmp_path / "two/strategy.json").write_text(strategy)
    done("compare", "one", "two", cwd=tmp_path)
    record = tmp_path / "two/stages/evaluate.json"
    evaluated = read_json(record)
    pruned = evaluated["pruned"]
    for own in (
        {"pruned": pruned | {"lost": pruned["lost"] + 1, "gained": pruned["gained"] + 1}},
        {"pruned": pruned | {"divergence": pruned["divergence"] + 0.01}},
        {"finetuned": pruned},  # of a later stage, judged without a report
    ):
        record.write_text(json.dumps(evaluated | own))
        refused(amc("compare", "one", "two", cwd=tmp_path), *message)
        assert not has_current_report(RunFolder(tmp_path / "two"))
    record.write_text(json.dumps(evaluated))
    assert has_current_report(RunFolder(tmp_path / "two"))
    train = read_json(tmp_path / "two/stages/train.json")
    (tmp_path / "two/stages/train.json").write_text(json.dumps({**train, "made_of": {"dense": "another"}}))
    refused(amc("compare", "one", "two", cwd=tmp_path), *message)
    (tmp_path / "two/stages/train.json").unlink()
    (tmp_path / "two/stages/evaluate.json").unlink()
    refused(amc("compare", "one", "two", cwd=tmp_path), *message)


@pytest.fixture
def quantized(reported, tmp_path):
    """A run that was pruned, and then quantized; and one that was quantized as it is."""
    report = read_json(reported / "run/report.json")
    int8 = {"top1": 21.5, "macs": 1.0, "params": 1.0}
    other = {"quantized": {"speedup": 3.25}}
    both = {**report, "quantized": int8, "speedup": {"torch": 1.5}}
    both["latency"] = [{"backend": "torch", "others": {}}, {"backend": "onnxruntime", "others": other}]
    whole = {name: value for name, value in both.items() if name not in ("pruned", "finetuned")}
    whole |= {"macs_ratio": 1.0, "params_ratio": 1.0, "speedup": {"onnxruntime": 3.25}}
    for name, facts in (("both", both), ("whole", whole)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps(facts))
    return tmp_path


def test_quantized_runs_are_compared_by_their_quantized_networks(quantized):
    head, *rows = done("compare", "both", "whole", "--out", "two.html", cwd=quantized).out.splitlines()
    assert "onnxruntime" in head
    assert "torch" not in head.replace("onnxruntime", "")
    for row in rows[:2]:
        assert "21.50" in row
        assert "3.25x" in row
        assert "1.50x" not in row
    assert "100.0%" in rows[1]


def test_a_report_without_a_smaller_network_is_damaged(quantized):
    path = quantized / "whole/report.json"
    path.write_text(path.read_text().replace('"quantized": {"top1"', '"other": {"top1"'))
    refused(amc("compare", "both", "whole", cwd=quantized), "neither a pruned nor a quantized network")
