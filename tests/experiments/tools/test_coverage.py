from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from amc.errors import AmcError
from experiments.coverage import __main__ as command
from experiments.coverage import measure as measuring
from experiments.coverage.table import kind, table
from experiments.coverage.zoo import Case, cases
from experiments.reproduce.origins import made_with
from tests.experiments.helpers import read_lines
from tests.networks import Chunked, SecretScale, StandardisedConv


def row(name: str, outcome: str = "exact", **facts: object) -> dict[str, object]:
    defaults = {
        "network": name, "size": 64, "seed": 0, "outcome": outcome, "reason": None, "groups": 3,
        "left_out": [], "macs": 100, "other_macs": 0, "prunable_share": 1.0, "minimum_macs_ratio": 0.05,
        "difference": 2e-15, "seconds": 1.5, "commit": "0123456789",
        "limits": [300, 12000],
    }  # fmt: skip
    return {**defaults, **facts}


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["coverage", *arguments])
    command.main()


def test_cases_are_named_by_pattern() -> None:
    assert [case.key for case in cases("all", ["resnet18"])] == ["torchvision:resnet18", "timm:resnet18"]
    assert [case.key for case in cases("timm", ["*:resnet18"])] == ["timm:resnet18"]
    (vit,) = cases("torchvision", ["vit_b_16"])
    assert (vit.size, vit.kwargs) == (64, {"image_size": 64})
    assert len(cases("torchvision", [])) > 90
    assert len(cases("timm", [])) > 60
    with pytest.raises(AmcError, match="--only resnet19: fits none of"):
        cases("all", ["resnet19"])


def test_one_network_is_measured() -> None:
    facts = measuring.measure(Case("torchvision", "squeezenet1_1", 32))
    assert (facts["outcome"], facts["reason"], facts["other_macs"]) == ("exact", None, 0)
    assert facts["groups"] == 25
    assert 0.9 < facts["prunable_share"] <= 1
    assert 0.03 < facts["minimum_macs_ratio"] < 0.1
    assert facts["difference"] < 1e-12
    assert facts["folded_difference"] < 1e-4


def broken():
    raise KeyError("something")


@pytest.mark.parametrize(
    ("make", "outcome", "reason"),
    [
        (Chunked, "exact", None),
        (SecretScale, "in part", "compressor.exclude=[stem.0]"),
        (lambda: StandardisedConv(3, 4, 3), "refused", "no prunable layers"),
        (broken, "crash", "KeyError: 'something'"),
    ],
)
def test_every_outcome_has_its_name(make, outcome, reason, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "build", lambda *args, **options: make())
    facts = measuring.measure(Case("timm", "mine", 12))
    assert facts["outcome"] == outcome
    assert facts["reason"] is None if reason is None else reason in facts["reason"]


def test_a_search_that_would_judge_another_network_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "build", lambda *args, **options: Chunked())
    monkeypatch.setattr(measuring, "FOLDED_TOLERANCE", 0.0)
    facts = measuring.measure(Case("timm", "mine", 12))
    assert facts["outcome"] == "refused"
    assert "folded candidate differs" in facts["reason"]


def test_measured_networks_are_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def measure(case: Case, options: object) -> dict[str, object]:
        asked.append(case.key)
        return row(case.key)

    monkeypatch.setattr(command, "_measure", measure)
    out = tmp_path / "table.md"
    (tmp_path / "table.jsonl").write_text(json.dumps(row("timm:resnet18")) + '\n{"network": "torn\n')
    run(monkeypatch, "--out", str(out), "--only", "resnet18")
    assert asked == ["torchvision:resnet18"]
    text = out.read_text()
    assert "--only resnet18" in text
    *_, last = (tmp_path / "table.jsonl").read_text().splitlines()
    assert list(json.loads(last)["versions"]) == list(command.PACKAGES)
    assert "versions not recorded in 1 of 2 rows" in text
    assert text.count("| resnet18 | 64 | 3 | 100% | 0.05 | exact, 2e-15 | 1.5 |  |") == 2
    run(monkeypatch, "--out", str(out), "--only", "resnet18")
    assert len(asked) == 1
    run(monkeypatch, "--out", str(out), "--only", "resnet18", "--seed", "1")
    assert len(asked) == 3  # another seed is another measurement


def test_the_page_tells_changes_without_a_commit_and_all_versions() -> None:
    dirty = "0123456789+dirty"
    older, first = row("timm:a"), row("timm:b", commit=dirty, versions={"torch": "2.1", "timm": "1.0"})
    later = row("timm:c", commit="abcdef0123", versions={"torch": "2.2", "timm": None})
    assert made_with([first, later]) == (
        "commit 0123456+dirty, abcdef0, torch 2.1 and 2.2, timm 1.0 and not installed"
    )
    assert made_with([older]) == "commit 0123456, versions not recorded in 1 of 1 rows"


def test_networks_that_met_a_limit_are_tried_again_with_another_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_measure", lambda case, options: row(case.key))
    log, out = tmp_path / "table.jsonl", tmp_path / "table.md"
    log.write_text(json.dumps(row("timm:resnet18", "limit", reason="slow", limits=[10, 12000])) + "\n")
    same = ("--out", str(out), "--only", "timm:resnet18")
    run(monkeypatch, *same, "--timeout", "10")
    assert "| over the limit | 1.5 | slow |" in out.read_text()
    run(monkeypatch, *same)
    assert "| exact, 2e-15 |" in out.read_text()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--only", "resnet18", "--timeout", "0.01"], "takes more than 0.01 s"),
        # Slow: the process of its own imports torch and fills its memory.
        pytest.param(
            ["--only", "vgg16", "--memory-mib", "3500"], "needs more memory", marks=pytest.mark.slow
        ),
    ],
)
def test_limits_are_results(arguments, reason, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "table.md"
    run(monkeypatch, "--out", str(out), "--zoo", "torchvision", *arguments)
    (found,) = read_lines(tmp_path / "table.jsonl")
    assert found["outcome"] == "limit"
    assert reason in found["reason"]
    assert found["reason"] in out.read_text()


class PanicException(BaseException):
    """As that of a Rust extension, which is no Exception."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("can't allocate memory: you tried 3 GB"),
        PanicException("PyObject pointer is null"),
    ],
)
def test_a_network_that_needs_more_memory_met_a_limit(error, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(measuring, "build", build)
    facts = measuring.measure(Case("timm", "mine", 12))
    assert (facts["outcome"], facts["reason"]) == ("limit", measuring.NO_MEMORY)


def test_other_panics_are_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*args: object, **options: object) -> None:
        raise PanicException("index out of bounds")

    monkeypatch.setattr(measuring, "build", build)
    facts = measuring.measure(Case("timm", "mine", 12))
    assert (facts["outcome"], facts["reason"]) == ("crash", "PanicException: index out of bounds")


def test_a_stopped_measurement_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(measuring, "build", build)
    with pytest.raises(KeyboardInterrupt):
        measuring.measure(Case("timm", "mine", 12))


def test_a_process_limits_its_memory_and_prints_its_results(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    limits: list[int] = []
    monkeypatch.setattr(command, "limit_memory", limits.append)
    monkeypatch.setattr(measuring, "build", lambda *args, **options: Chunked())
    case = Case("timm", "mine", 12)
    run(monkeypatch, "--one", json.dumps(vars(case)), "--memory-mib", "900", "--seed", "3")
    facts = json.loads(capsys.readouterr().out)
    assert (facts["network"], facts["outcome"], facts["seed"]) == ("timm:mine", "exact", 3)
    assert limits == [900]


def test_the_table_counts_kinds_of_reasons() -> None:
    left_out = [
        {"name": "a", "width": 8, "reason": "a.conv is a grouped convolution (groups=2)"},
        {"name": "b", "width": 8, "reason": "b is a grouped convolution (groups=4)"},
        {"name": "head", "width": 5, "reason": "its channels are the network's output"},
        {"name": "c", "width": 8, "reason": "a reshape from 1x8x2x2 to 1x2x4x2x2 rearranges the channels"},
    ]
    rows = [
        row("timm:one", left_out=left_out, other_macs=25),
        row("timm:two", "in part", reason="differs: compressor.exclude=[x]"),
        row("torchvision:three", "refused", reason="cannot | be"),
    ]
    text = table(rows, ["about"])
    assert "2 x is a grouped convolution; 1 x a reshape rearranges the channels; 25% of the MACs" in text
    assert "exact in part, 2e-15 | 1.5 | differs: compressor.exclude=[x] |" in text
    assert "| three | 64 |  |  |  | refused | 1.5 | cannot \\| be |" in text
    assert "| timm | 2 | 1 | 1 | 0 | 0 | 0 |" in text
    assert kind("x.y is called 3 times with shared weights") == "is called several times with shared weights"


def test_bad_input_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "--out", str(tmp_path / "x.md"), "--only", "nothing")
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.count("\n") == 1
    assert error.startswith("coverage: --only nothing: fits none of")
