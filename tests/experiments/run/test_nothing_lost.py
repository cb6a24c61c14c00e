"""What commands that are refused or fail leave behind, and results that do not belong together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from amc.errors import FileError
from experiments.command.memory.content import FILE
from experiments.command.memory.identity import begin
from experiments.run.folder import RunFolder
from tests.experiments.helpers import (
    TINY,
    amc,
    artifacts,
    done,
    interrupt,
    read_json,
    read_lines,
    refused,
    workspace,
)
from tests.params import slow

JOB = (*TINY, "agent=random", "agent.episodes=6", "budget.round_to=1")
VERIFIED = ("repairs", "predicted_ratio", "measured_ratio", "dense_ms")
COUNTED = """
calls = 0
def score(evaluation):
    global calls
    calls += 1
    if calls == {at}:
        raise ValueError("fails")
    return evaluation.agreement
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A current directory with a finished run; its tests work on copies."""
    cwd = workspace(tmp_path_factory.mktemp("finished"))
    done(*JOB, "stages=[train,search,prune,finetune,evaluate]", "run_dir=run", cwd=cwd)
    return cwd


@pytest.fixture
def cwd(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "cwd")


def everything(folder: Path) -> dict[str, bytes]:
    """Return the files of a run with its settings, less its log and its lock."""
    hydra = {path.name: path.read_bytes() for path in (folder / ".hydra").iterdir()}
    return {**artifacts(folder), **hydra}


@pytest.mark.parametrize(
    "overrides",
    [
        ("stages=[search]", "budget.macs_ratio=0"),
        slow(("stages=[search]", "reward=nowhere.score")),
        slow(("stages=[prune]", "strategy=nowhere.json")),
        ("stages=[prune]", "strategy=full.json"),
        ("stages=[correlate]", "correlate.policies=1"),
        slow(("stages=[verify]",)),
    ],
)
def test_a_refused_command_changes_nothing(cwd: Path, overrides: tuple[str, ...]) -> None:
    full = read_json(cwd / "run/strategy.json")
    full["groups"] = [{**group, "kept": group["dense"]} for group in full["groups"]]
    (cwd / "full.json").write_text(json.dumps(full))
    before = everything(cwd / "run")
    refused(amc("run_dir=run", *overrides, cwd=cwd))
    assert everything(cwd / "run") == before


@pytest.mark.parametrize("at", [1, slow(3)])
def test_a_failing_reward_keeps_the_results_of_the_last_search(cwd: Path, at: int) -> None:
    (cwd / f"counted{at}.py").write_text(COUNTED.format(at=at))
    names = (
        "search.jsonl",
        "stages/search.json",
        "strategy.json",
        "pruned.safetensors",
        "model.safetensors",
        FILE,
    )
    before = {name: (cwd / "run" / name).read_bytes() for name in names}
    command = ("run_dir=run", "stages=[search]", "seed=3", f"reward=counted{at}.score")
    refused(amc(*command, cwd=cwd), "fails")
    assert {name: (cwd / "run" / name).read_bytes() for name in names} == before
    done("run_dir=run", "stages=[evaluate]", cwd=cwd)


def test_a_search_keeps_the_network_of_the_strategy_that_it_finds_again(cwd: Path, tmp_path: Path) -> None:
    run, made = cwd / "run", ("model.safetensors", "pruned.safetensors", "stages/finetune.json")
    search = ("run_dir=run", "stages=[search]")
    assert read_json(run / "stages/search.json")["best_episode"] > 0
    before, killed = [(run / name).read_bytes() for name in made], shutil.copytree(cwd, tmp_path / "killed")
    done(*search, "agent.episodes=7", cwd=cwd)  # whose first episodes are worse
    assert [(run / name).read_bytes() for name in made] == before

    done(*search, "agent=uniform", cwd=cwd)
    assert not any((run / name).exists() for name in made)
    other = (run / "strategy.json").read_bytes()
    for agent, keeps in (("random", True), ("uniform", False)):
        (killed / "run/strategy.json").write_bytes(other)  # a killed search of agent=uniform leaves it
        done(*search, f"agent={agent}", "agent.episodes=6", cwd=killed)
        assert [(killed / "run" / name).exists() for name in made] == [keeps] * len(made)


@pytest.mark.slow
def test_a_search_that_was_stopped_is_not_reported_with_the_record_of_another(cwd: Path) -> None:
    interrupt(cwd, 4)
    settings = ("reward=mynet.score", "seed=5", "budget.macs_ratio=0.8")
    refused(amc("run_dir=run", *settings, "stages=[search]", cwd=cwd), "search stopped", status=130)
    (cwd / "interrupt").unlink()
    assert read_json(cwd / "run/strategy.json")["provenance"]["reward"] == "mynet.score"
    done("run_dir=run", "stages=[prune,report]", cwd=cwd)
    assert "search" not in read_json(cwd / "run/report.json")


def test_a_report_is_about_the_network_that_was_pruned(cwd: Path) -> None:
    """And neither about what the file of a strategy says, nor about what was chosen or measured before."""
    before = read_json(cwd / "run/strategy.json")
    full = {**before, "groups": [{**group, "kept": group["dense"]} for group in before["groups"]]}
    (cwd / "full.json").write_text(json.dumps(full))
    widths = [group["kept"] for group in before["groups"]]
    candidate = {"widths": widths, "return": 1.0, "top1": 1.0, "macs_ratio": 0.5, "top1_trained": 1.0}
    RunFolder(cwd / "run").record("verify", {**dict.fromkeys(VERIFIED, 1), "widths": widths})
    chosen = {"candidates": [candidate], "chosen": 0, "images": "search_val", "epochs": 0}
    RunFolder(cwd / "run").record("choose", chosen)
    other = {"widths": [group["dense"] for group in before["groups"]], "top1_pruned": 1.0}
    RunFolder(cwd / "run").record("compare", {"strategy": other})  # as earlier versions compared a file's
    done("run_dir=run", "stages=[report]", cwd=cwd)
    found = set(read_json(cwd / "run/report.json"))
    assert {"choose", "verify", "search"} <= found
    assert "compare" not in found
    asked = amc("run_dir=run", "strategy=full.json", "stages=[compare,report]", cwd=cwd)
    refused(asked, "strategy=full.json is another than that of", "add prune to stages")
    full["provenance"]["agent"] = "evolution"
    (cwd / "full.json").write_text(json.dumps(full))
    command = ("run_dir=run", "strategy=full.json", "budget.macs_ratio=1", "stages=[prune,report]")
    out = done(*command, cwd=cwd).out
    report = read_json(cwd / "run/report.json")
    assert {"choose", "verify", "search"}.isdisjoint(report)
    assert (report["agent"], report["references"]) == ("evolution", {})
    assert "best so far" not in (cwd / "run/report.html").read_text()
    assert out.count("is left out: it is about another strategy") == 3
    own = read_json(cwd / "run/strategy.json")
    assert (
        (report["macs_ratio"], report["params_ratio"]) == (own["macs_ratio"], own["params_ratio"]) == (1, 1)
    )


def test_a_late_failure_leaves_the_folder_what_it_is(tmp_path: Path) -> None:
    cwd = workspace(tmp_path)
    refused(amc(*JOB, "seed=4", "stages=[train,prune]", "run_dir=run", cwd=cwd), "stages=[search]")
    weights = (cwd / "run/dense.safetensors").read_bytes()
    assert "seed=4" in read_json(cwd / "run" / FILE)["overrides"]
    done("run_dir=run", "stages=[search]", cwd=cwd)
    assert (cwd / "run/dense.safetensors").read_bytes() == weights
    assert read_json(cwd / "run/strategy.json")["seed"] == 4


def test_a_stage_that_is_done_keeps_the_settings_that_it_was_done_with(cwd: Path) -> None:
    refused(amc("run_dir=run", "seed=9", "stages=[train,export]", cwd=cwd), "cut from another dense network")
    assert "seed=9" in read_json(cwd / "run" / FILE)["overrides"]


def test_a_new_folder_gets_its_identity_before_anything_else(tmp_path: Path) -> None:
    folder = tmp_path / "a/run"
    assert begin(folder, ["seed=3", "stages=[train]", "run_dir=a/run"], paths=())
    assert [path.name for path in folder.iterdir()] == [FILE]
    assert read_json(folder / FILE)["unfinished"] == "stages=[train]"
    assert not begin(folder, ["seed=4"], paths=())
    assert read_json(folder / FILE)["overrides"] == ["seed=3"]


def test_a_refused_first_command_leaves_no_identity(tmp_path: Path) -> None:
    cwd = workspace(tmp_path)
    refused(amc(*JOB, "budget.macs_ratio=0", "run_dir=run", cwd=cwd), "macs_ratio")
    assert not (cwd / "run" / FILE).exists()
    assert not (cwd / "run/.hydra/config.yaml").exists()


def test_temporary_files_of_killed_commands_are_removed(cwd: Path) -> None:
    left = [cwd / "run" / f".x.json.{'0' * 32}.tmp", cwd / "run/stages" / f".y.{'a' * 32}.tmp"]
    for path in left:
        path.touch()
    (cwd / "run/.mine.tmp").touch()
    done("run_dir=run", "stages=[inspect]", cwd=cwd)
    assert [path for path in left if path.exists()] == []
    assert (cwd / "run/.mine.tmp").exists()


@pytest.mark.slow
def test_results_of_another_dense_network_are_not_shown(cwd: Path) -> None:
    assert {"dense", "pruned", "finetuned"} <= set(read_json(cwd / "run/stages/evaluate.json"))
    done("run_dir=run", "stages=[train]", "train.epochs=2", cwd=cwd)
    outcome = done("run_dir=run", "stages=[evaluate]", cwd=cwd)
    assert "another dense network" in outcome.out
    assert {"pruned", "finetuned"}.isdisjoint(read_json(cwd / "run/stages/evaluate.json"))
    for stages in ("export", "report", "evaluate,report"):
        outcome = amc("run_dir=run", f"stages=[{stages}]", cwd=cwd)
        refused(outcome, "another dense network", "stages=[prune]")
    done("run_dir=run", "stages=[prune,evaluate]", cwd=cwd)
    assert set(read_json(cwd / "run/stages/evaluate.json")) >= {"dense", "pruned"}


@pytest.mark.slow
def test_results_of_images_of_another_size_are_not_shown(cwd: Path) -> None:
    done("run_dir=run", "stages=[export,benchmark,report]", cwd=cwd)
    whole = {"search", "finetune", "export", "finetuned"}
    assert whole < set(read_json(cwd / "run/report.json"))
    larger = ("run_dir=run", "data.image_size=12")
    for stages in ("report", "export", "benchmark"):
        message = refused(amc(*larger, f"stages=[{stages}]", cwd=cwd), "images of another size")
        assert "stages=[prune]" in message
    out = done(*larger, "stages=[prune,report]", cwd=cwd).out
    assert "search.json is left out: it is about another dense network, strategy or size of images" in out
    report = read_json(cwd / "run/report.json")
    assert whole.isdisjoint(report)
    assert (report["latency"], report["speedup"]) == ([], {})


@pytest.mark.slow
@pytest.mark.parametrize("stages", ["train,prune,report", "schedule,report"])
def test_episodes_of_a_search_that_is_not_the_run_s_are_not_shown(cwd: Path, stages: str) -> None:
    done("run_dir=run", f"stages=[{stages}]", "train.epochs=2", "schedule.epochs=0", cwd=cwd)
    assert (cwd / "run/search.jsonl").exists()
    report, page = read_json(cwd / "run/report.json"), (cwd / "run/report.html").read_text()
    assert "search" not in report
    assert report["references"] == {}
    assert "best so far" not in page
    assert not (cwd / "run/pareto.json").exists()
    for stage in ("choose", "correlate"):
        message = refused(amc("run_dir=run", f"stages=[{stage}]", cwd=cwd), "stages=[search] again")
        assert "search.jsonl" in message
    done("run_dir=run", "stages=[search,prune,report]", cwd=cwd)
    assert "search" in read_json(cwd / "run/report.json")
    assert (cwd / "run/pareto.json").exists()


@pytest.mark.parametrize(
    "before", ["search", *(pytest.param(name, marks=pytest.mark.slow) for name in ("plan", "evaluate"))]
)
def test_stages_after_a_training_use_its_weights(cwd: Path, before: str) -> None:
    stages = ("train", "search", "prune")
    done("run_dir=run", f"stages=[{before},{','.join(stages)}]", "train.epochs=2", cwd=cwd)
    done("run_dir=run", "stages=[evaluate]", cwd=cwd)  # which reads the weights that were written
    records = {name: read_json(cwd / f"run/stages/{name}.json") for name in (*stages, "evaluate")}
    digests = {name: record["made_of"]["dense"] for name, record in records.items()}
    assert set(digests.values()) == {digests["evaluate"]}


@pytest.mark.parametrize(
    ("stage", "facts", "message"),
    [
        ("prune", {"stage_seconds": None}, "stage_seconds is null, expected a number"),
        ("train", {"held_out": "32"}, "held_out is"),
        ("search", {"error_curves": {"a": [1, 2]}}, "error_curves.a.0. is 1, expected a list"),
        ("search", {"advice": None}, "advice is null"),
        ("finetune", {"epochs": True}, "epochs is true, expected an integer"),
        ("export", {"files": [], "left_out": []}, "left_out is"),
        ("serve", {"rate": 1, "backend": "torch", "deadline_ms": 2, "served": {"a": {}}}, "served.a has no"),
        ("profile", {"dense_ms": 1.0}, "it has no 'target'"),
        ("verify", {"repairs": 1, "measured_ratio": 1}, "it has no 'predicted_ratio'"),
        ("proxies", {"verdict": "x", "reward": "y", "rows": [1]}, "rows.0. is 1, expected an object"),
    ],
)
def test_records_hold_what_is_read_of_them(
    stage: str, facts: dict[str, object], message: str, tmp_path: Path
) -> None:
    folder = RunFolder.made(tmp_path)
    folder.record(stage, facts)
    with pytest.raises(FileError, match=message) as error:
        folder.recorded(stage)
    assert f"run stages=[{stage}] again" in str(error.value)


@pytest.mark.slow
def test_policies_that_were_judged_with_other_settings_are_judged_again(cwd: Path) -> None:
    command = ("run_dir=run", "stages=[correlate]", "correlate.policies=3")
    done(*command, cwd=cwd)
    first = read_lines(cwd / "run/correlate.jsonl")
    done(*command, cwd=cwd)
    assert read_lines(cwd / "run/correlate.jsonl") == first
    done(*command, "finetune.epochs=0", cwd=cwd)
    second = read_lines(cwd / "run/correlate.jsonl")
    assert all("top1_finetuned" in row for row in first)
    assert not any("top1_finetuned" in row for row in second)
