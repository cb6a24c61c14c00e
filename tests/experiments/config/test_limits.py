"""Several limits at once on the command line: each ratio that is given holds, none is ignored silently."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from amc.latency import BACKENDS
from amc.strategy import Strategy
from experiments.config.budgets import asked_budgets, check_given, own_overrides, single_budget, told
from experiments.config.schema import BudgetConfig
from experiments.job import table
from experiments.run.room import room_left
from tests.amc.budget.test_limits import make_space
from tests.experiments.helpers import TINY, amc, composed, done, read_json, read_lines, refused, workspace
from tests.fakes import Spinning, registered
from tests.params import slow

JOB = (*TINY, "agent.episodes=6", "budget.round_to=1", "reward=agreement", "run_dir=run")
BOTH = (*JOB, "budget.macs_ratio=0.5", "budget.params_ratio=0.4")
LINE = "budget: macs <= 0.5, params <= 0.4"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A current directory with a finished run under two limits, and what it printed."""
    cwd = workspace(tmp_path_factory.mktemp("limits"))
    return cwd, done(*BOTH, "stages=[train,search,prune,report]", cwd=cwd).out


@pytest.fixture
def again(finished: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of the current directory with the finished run."""
    return shutil.copytree(finished[0], tmp_path / "again")


# --- what the configuration means


def test_every_ratio_that_is_not_null_is_a_limit() -> None:
    assert single_budget(BudgetConfig("macs", macs_ratio=0.5)) == {"macs": 0.5}
    both = BudgetConfig("params", macs_ratio=0.5, params_ratio=0.3)
    assert list(single_budget(both).items()) == [("params", 0.3), ("macs", 0.5)]
    assert single_budget(BudgetConfig("macs", params_ratio=0.3)) == {"params": 0.3}
    assert asked_budgets(composed("budget.params_ratio=0.3").budget) == [{"macs": 0.5, "params": 0.3}]
    assert asked_budgets(composed("budget=params").budget) == [{"params": 0.5}]


def test_a_list_stands_for_its_kind_and_other_ratios_hold_for_every_entry() -> None:
    listed = composed("budget.macs_ratios=[0.3,0.7]", "budget.params_ratio=0.6").budget
    assert asked_budgets(listed) == [{"macs": 0.3, "params": 0.6}, {"macs": 0.7, "params": 0.6}]
    check_given(listed, ["budget.macs_ratios=[0.3,0.7]", "budget.params_ratio=0.6"])
    kinds = composed("budget.macs_ratios=[0.5]", "budget.params_ratios=[0.3]").budget
    assert asked_budgets(kinds) == [{"macs": 0.5}, {"params": 0.3}]
    preset = composed("budget.params_ratios=[0.3]").budget
    assert asked_budgets(preset) == [{"params": 0.3, "macs": 0.5}]


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ([], "macs <= 0.5 (from budget=macs)"),
        (["budget.params_ratio=0.3"], "macs <= 0.5 (from budget=macs), params <= 0.3"),
        (["budget=params"], "params <= 0.5 (from budget=params)"),
        (["experiment=resnet50_cifar10"], "params <= 0.4 (from experiment=resnet50_cifar10)"),
        (["budget.macs_ratios=[0.3,0.5]"], "macs <= 0.3 or 0.5"),
        (["budget.macs_ratios=[0.3,0.5]", "budget.params_ratio=0.6"], "macs <= 0.3 or 0.5, params <= 0.6"),
        (["budget.macs_ratios=[0.3]", "budget.params_ratios=[0.2,0.4]"], "macs <= 0.3; params <= 0.2 or 0.4"),
    ],
)
def test_the_line_tells_every_limit_and_where_it_comes_from(overrides: list[str], line: str) -> None:
    assert told(composed(*overrides).budget, overrides) == line


@pytest.mark.parametrize(
    "overrides",
    [
        ["budget.macs_ratios=[0.3,0.7]", "budget.params_ratio=0.6"],
        ["budget.macs_ratios=[0.5]", "budget.params_ratios=[0.3]"],
        ["budget=params", "budget.params_ratios=[0.3,0.4]", "budget.round_to=2"],
        ["budget=latency", "budget.macs_ratios=[0.3]"],
    ],
)
def test_the_overrides_of_one_budget_compose_to_it(overrides: list[str]) -> None:
    for ratios in asked_budgets(composed(*overrides).budget):
        own = own_overrides(ratios, overrides)
        assert list(single_budget(composed(*own).budget).items()) == list(ratios.items())


# --- jobs under two limits


def test_every_network_of_a_search_meets_both_limits(finished: tuple[Path, str]) -> None:
    cwd, out = finished
    episodes = read_lines(cwd / "run/search.jsonl")
    assert all(line["macs_ratio"] <= 0.5 and line["params_ratio"] <= 0.4 for line in episodes)
    prune = read_json(cwd / "run/stages/prune.json")
    assert prune["macs_ratio"] <= 0.5
    assert prune["params_ratio"] <= 0.4
    assert out.count(LINE) == 1
    assert out.index(LINE) < out.index("search: ddpg found")


def test_strategy_and_reports_show_every_limit_and_what_was_reached(finished: tuple[Path, str]) -> None:
    cwd, out = finished
    strategy = Strategy.load(cwd / "run/strategy.json")
    assert strategy.budget["kind"] == "macs"
    assert strategy.budget["ratio"] == 0.5
    assert strategy.budget["further"] == {"params": 0.4}
    reached = {"macs": strategy.macs_ratio, "params": strategy.params_ratio}
    assert strategy.provenance["reached"] == reached
    report = read_json(cwd / "run/report.json")
    assert report["limits"] == [
        {"kind": "macs", "ratio": 0.5, "reached": reached["macs"]},
        {"kind": "params", "ratio": 0.4, "reached": reached["params"]},
    ]
    shares = {kind: f"{share:.4f}" for kind, share in reached.items()}
    line = f"macs_ratio {shares['macs']} (limit 0.5), params_ratio {shares['params']} (limit 0.4)"
    assert f"on search_val at {line} in 6 episodes" in out
    assert f"budget: macs {shares['macs']} (limit 0.5), params {shares['params']} (limit 0.4)" in out
    html = (cwd / "run/report.html").read_text()
    for share in ("50.00%", f"{reached['macs']:.2%}", "40.00%", f"{reached['params']:.2%}"):
        assert f">{share}<" in html


def test_the_table_of_budgets_has_a_limit_on_the_bytes_and_says_that_it_is_missed() -> None:
    cost = {"macs": 1e6, "params": 1e5}
    rows = [
        {**cost, "folder": name, "kind": kind, "ratio": 0.5, "reached": {kind: reached}, "speedup": {}}
        for name, kind, reached in (("size_1", "size", 0.5), ("size_2", "size", 0.6), ("macs_1", "macs", 0.5))
    ]
    head, _, *told = table({"dense": {**cost, "search": {}}, "budgets": rows})
    place = head.index("size")
    assert [row[place] for row in told] == ["0.5000", "0.6000, missed", ""]
    assert "macs" not in head


def test_the_table_of_budgets_has_the_accuracy_of_quantized_networks() -> None:
    cost = {"macs": 1e6, "params": 1e5}
    part = {**cost, "kind": "macs", "reached": {"macs": 0.5}, "ratio": 0.5, "top1_finetuned": 90.0}
    rows = [
        {**part, "folder": "macs_1", "top1_quantized": 87.0, "speedup": {"onnxruntime": 3.0}},
        {**part, "folder": "macs_2", "speedup": {}},
    ]
    dense = {**cost, "top1": 92.0, "search": {"top1": 91.0}}
    assert [row[3:] for row in table({"dense": dense, "budgets": rows})] == [
        ["search", "pruned", "fine-tuned", "quantized", "onnxruntime"],
        ["91.00", "92.00", "", "", ""],
        ["", "", "90.00", "87.00", "3.00x"],
        ["", "", "90.00", "", ""],
    ]


def test_a_strategy_under_one_limit_has_no_further_field(tmp_path: Path) -> None:
    done(*JOB, "stages=[train,search]", "agent=greedy", cwd=workspace(tmp_path))
    strategy = Strategy.load(tmp_path / "run/strategy.json")
    assert "further" not in strategy.budget
    assert "reached" not in strategy.provenance


@pytest.mark.parametrize(
    "agent", ["greedy", "evolution", *map(slow, ("netadapt", "thompson", "deep", "uniform"))]
)
@pytest.mark.parametrize("fit", ["scale", slow("cut")])
def test_agents_meet_both_limits(again: Path, agent: str, fit: str) -> None:
    done(
        "run_dir=run", f"agent={agent}", "agent.episodes=6", f"budget.fit={fit}", "stages=[search]", cwd=again
    )
    lines = [line for line in read_lines(again / "run/search.jsonl") if line["phase"] != "relaxed"]
    assert lines
    assert all(line["macs_ratio"] <= 0.5 and line["params_ratio"] <= 0.4 for line in lines)


@pytest.mark.slow
def test_the_folder_remembers_both_and_a_strategy_over_one_of_them_is_refused(again: Path) -> None:
    before = (again / "run/strategy.json").read_bytes()
    assert LINE in done("run_dir=run", "stages=[search]", cwd=again).out
    assert (again / "run/strategy.json").read_bytes() == before
    outcome = amc("run_dir=run", "stages=[prune]", "budget.params_ratio=0.2", cwd=again)
    message = refused(outcome, "over params_ratio=0.2; it was made for another budget")
    assert "macs_ratio" not in message
    done("run_dir=run", "stages=[search]", "budget.params_ratio=null", cwd=again)
    assert "further" not in read_json(again / "run/strategy.json")["budget"]


@pytest.mark.slow
def test_a_single_ratio_holds_for_every_listed_budget_of_another_kind(tmp_path: Path) -> None:
    cwd = workspace(tmp_path)
    lists = ("budget.macs_ratios=[0.4,0.8]", "budget.params_ratio=0.5")
    outcome = done(*JOB, *lists, "agent=greedy", "stages=[train,search]", cwd=cwd)
    assert "budget: macs <= 0.4 or 0.8, params <= 0.5" in outcome.out
    rows = read_json(cwd / "run/budgets.json")["budgets"]
    assert [(row["folder"], row["ratio"], row["further"]) for row in rows] == [
        ("macs_0.40", 0.4, {"params": 0.5}),
        ("macs_0.80", 0.8, {"params": 0.5}),
    ]
    for row in rows:
        assert row["reached"] == {"macs": row["macs_ratio"], "params": row["params_ratio"]}
        assert row["macs_ratio"] <= row["ratio"]
        assert row["params_ratio"] <= 0.5
    head = next(line for line in outcome.out.splitlines() if "params <= 0.5" in line and "MACs M" in line)
    assert head
    shown = OmegaConf.create(done("--cfg", "job", "run_dir=run/macs_0.80", cwd=cwd).out)
    stored = OmegaConf.load(cwd / "run/macs_0.80/.hydra/config.yaml")
    assert shown.budget == stored.budget
    assert (shown.budget.macs_ratio, shown.budget.params_ratio, shown.budget.macs_ratios) == (0.8, 0.5, [])


def test_a_limit_that_cannot_be_met_is_named_with_what_can_be_reached(tmp_path: Path) -> None:
    outcome = amc(*BOTH, "budget.params_ratio=0.001", cwd=workspace(tmp_path))
    message = refused(outcome, "budget.params_ratio is 0.001, but the smallest allowed network keeps")
    assert " of the macs and " in message
    assert "budget.macs_ratio is" not in message


def test_a_reward_without_a_budget_says_so(again: Path) -> None:
    out = done("run_dir=run", "reward=accuracy_macs", "stages=[search]", cwd=again).out
    assert f"{LINE}; reward=accuracy_macs does not enforce it" in out


@pytest.mark.slow
def test_a_latency_limit_beside_others_is_profiled_and_verified(tmp_path: Path) -> None:
    cwd = workspace(tmp_path)
    profile = (
        "profile.backend=spinning", "profile.points=2", "profile.rounds=2", "profile.fit=4",
        "profile.held_out=2", "profile.tables=tables",
    )  # fmt: skip
    with registered(BACKENDS, spinning=Spinning()):
        done(
            *JOB, *profile, "budget.macs_ratio=0.6", "budget.latency_ratio=0.7", "budget.round_to=2",
            "agent=greedy", "stages=[train,search,prune,report]", cwd=cwd,
        )  # fmt: skip
    run = cwd / "run"
    assert (run / "stages/profile.json").exists()
    verify, strategy = read_json(run / "stages/verify.json"), Strategy.load(run / "strategy.json")
    assert verify["measured_ratio"] <= 0.7
    assert strategy.macs_ratio <= 0.6
    assert (strategy.budget["kind"], strategy.budget["further"]) == ("macs", {"latency": 0.7})
    assert strategy.provenance["reached"].keys() == {"macs", "latency"}
    limits = {limit["kind"]: limit["reached"] for limit in read_json(run / "report.json")["limits"]}
    assert limits == {"macs": strategy.macs_ratio, "latency": verify["measured_ratio"]}


# --- the room that the allowed widths leave


def test_groups_on_the_floor_by_hand() -> None:
    space = make_space([10, 10, 1], share=0.2)
    assert space.choices[2] == (1,)
    assert room_left(space, (2, 10, 1)) == {"groups": 3, "groups_on_floor": 1, "groups_whole": 2}
    assert room_left(space, (2, 2, 1)) == {
        "groups": 3,
        "groups_on_floor": 2,
        "groups_whole": 1,
        "advice": "2 of 3 groups sit at their smallest allowed width: lower budget.min_preserve_ratio or "
        "budget.round_to",
    }


def test_a_search_without_room_gives_advice(again: Path) -> None:
    tight = ("budget.min_preserve_ratio=0.5", "budget.macs_ratio=0.4", "budget.params_ratio=null")
    out = done("run_dir=run", *tight, "agent=greedy", "stages=[search,prune,report]", cwd=again).out
    facts = read_json(again / "run/stages/search.json")
    assert facts["groups_on_floor"] > facts["groups"] / 3
    assert f"search: {facts['advice']}" in out
    assert facts["advice"] in json.dumps(read_json(again / "run/report.json"))
    assert facts["advice"] in (again / "run/report.html").read_text()
    assert out.count(facts["advice"]) == 2
