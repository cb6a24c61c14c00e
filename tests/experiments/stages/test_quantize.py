"""Stage ``quantize``: one command from training to the report, and what it leaves behind."""

import json
import re
import shutil
from pathlib import Path

import onnx
import pytest
import torch
from safetensors.torch import load_file

import amc
from amc.quantization.calibration import quantize
from amc.quantization.layers import is_quantized
from experiments.report.quantization import parts
from experiments.run.check import other_than_int8
from experiments.run.folder import RunFolder
from experiments.run.run import open_run
from experiments.run.values import check_values, judges_on_unseen
from experiments.stages.networks.evaluate import answers_of
from experiments.stages.networks.quantize import _weights, simulation
from experiments.stages.networks.quantize import test_outputs as outputs_of
from tests.experiments.helpers import (
    FAKE,
    TINY,
    check_error,
    composed,
    done,
    inside,
    read_json,
    refused,
    workspace,
)
from tests.experiments.helpers import amc as command
from tests.networks import SHAPE, Chain, randomised

FAST = ("quantize.sensitivity_images=4", "latency.throughput_batch=0", "latency.memory=false")
JOB = (*TINY, *FAST, "agent=uniform", "run_dir=run", "latency.backends=[torch,onnxruntime]")
WIDE = """
def wide(num_classes):  # layers that cost more than a call does
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes),
    )
"""
ALL = "stages=[train,search,prune,finetune,quantize,export,benchmark,report]"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    cwd = workspace(tmp_path_factory.mktemp("quantize"))
    outcome = done(*JOB, ALL, cwd=cwd)
    return cwd, outcome.out


def network(cwd):
    names: dict = {}
    exec((cwd / "mynet.py").read_text(), names)
    return names["make"](4)


def test_one_command_goes_from_training_to_the_report(whole):
    cwd, out = whole
    assert "quantize: torch does not run static_int8 here" in out
    facts = read_json(cwd / "run/stages/quantize.json")
    assert facts["layers"] == len(facts["sensitivity"]) == 4
    (exported,) = read_json(cwd / "run/stages/export.json")["quantized"]["files"]
    assert (cwd / "run" / exported["file"]).stat().st_size == exported["bytes"]
    carried, float_file = (
        {entry.key: entry.value for entry in onnx.load(cwd / "run/exports" / name).metadata_props}
        for name in ("model_static_int8.onnx", "model.onnx")
    )
    assert carried == float_file
    assert {"mean", "std", "image_size", "channels", "class_names"} <= carried.keys()
    assert "--network model_static_int8.onnx" in (cwd / "run/exports/README.md").read_text()
    runtime = exported["runtimes"][0]
    assert runtime["runtime"] == "onnxruntime"
    assert runtime["agreement"] >= 90  # one image in 32 is 3%
    report = read_json(cwd / "run/report.json")
    assert report["quantized"]["top1"] == facts["top1"]
    assert set(report["quantized"]["latency_ms"]) == {"onnxruntime"}
    page = (cwd / "run/report.html").read_text()
    for title in ("From dense to quantized", "Quantized file in each runtime", "Error of the outputs"):
        assert title in page
    assert "nan" not in json.dumps(parts(report)["chain"]).lower()
    assert [row[0] for row in parts(report)["chain"]] == ["", "Dense", "Pruned", "Fine-tuned", "Quantized"]


def test_load_pruned_gives_the_quantized_network_back(whole):
    cwd, _ = whole
    net = amc.load_pruned(cwd / "run", network(cwd), quantized=True)
    assert is_quantized(net)
    assert not is_quantized(amc.load_pruned(cwd / "run", network(cwd)))
    assert net(torch.zeros(2, 3, 8, 8)).shape == (2, 4)


def test_a_new_network_makes_the_quantized_one_outdated(whole, tmp_path):
    cwd = shutil.copytree(whole[0], tmp_path / "cwd")
    done(*JOB, "stages=[prune]", cwd=cwd)
    assert not (cwd / "run/stages/quantize.json").exists()
    assert not list((cwd / "run").glob("quantization.*"))
    with pytest.raises(amc.FileError, match="run stage quantize first"):
        amc.load_pruned(cwd / "run", network(cwd), quantized=True)
    done(*JOB, "stages=[quantize]", "quantize.method=none", cwd=cwd)
    assert read_json(cwd / "run/stages/quantize.json")["method"] == "none"
    with pytest.raises(amc.FileError, match="run stage quantize first"):
        amc.load_pruned(cwd / "run", network(cwd), quantized=True)


@pytest.mark.parametrize(
    ("stages", "told"),
    [("[quantize,export]", "add prune before export"), ("[export]", "run stages=[prune] on it first")],
)
def test_a_dense_network_that_went_back_to_floats_is_no_result(stages, told, trained_run):
    RunFolder(trained_run / "run").record("quantize", {"method": "none"})
    job = (*JOB, "quantize.method=none", f"stages={stages}")
    refused(command(*job, cwd=trained_run), told)
    assert not (trained_run / "run/exports/model.onnx").exists()


@pytest.mark.slow
def test_another_quantization_keeps_what_is_known_of_the_float_network(whole, tmp_path):
    cwd = shutil.copytree(whole[0], tmp_path / "cwd")
    stages, exports = cwd / "run/stages", cwd / "run/exports"
    former = [read_json(stages / name) for name in ("export.json", "benchmark.json")]
    assert former[1]["runtimes"][1]["others"].keys() == {"quantized"}
    out = done(*JOB, "stages=[quantize]", "quantize.method=none", cwd=cwd).out
    assert "of stage benchmark, what is about the former quantized network is removed" in out
    export, benchmark = (read_json(stages / name) for name in ("export.json", "benchmark.json"))
    assert (export["files"], export["quantized"]) == (former[0]["files"], None)
    assert {path.name for path in exports.iterdir()} == {"model.onnx", "README.md", "predict.py"}
    assert "static_int8" not in (exports / "README.md").read_text()
    times = [each["comparison"]["speedup"] for each in benchmark["runtimes"]]
    assert times == [each["comparison"]["speedup"] for each in former[1]["runtimes"]]
    assert not any("quantized" in each["file_bytes"] or each["others"] for each in benchmark["runtimes"])
    assert "quantized network is removed" not in done(*JOB, "stages=[quantize]", cwd=cwd).out
    assert (stages / "export.json").exists()


@pytest.mark.slow
def test_a_dense_network_is_quantized_and_exported(trained_run):
    job = (*JOB, "quantize.method=weight_only", "quantize.weight_bits=4", "latency.backends=[onnxruntime]")
    out = done(*job, "stages=[quantize,export,benchmark,report]", cwd=trained_run).out
    assert "weights become float32 in every call" in out
    assert "dense / quantized" in out
    report = read_json(trained_run / "run/report.json")
    assert report["speedup"].keys() == {"onnxruntime"}
    assert "pruned" not in report
    page = (trained_run / "run/report.html").read_text()
    assert "its file shrinks from" in page
    assert "Quantized, ms" in page
    assert "quantized=True" in page
    assert "Which layers?" not in page
    net = amc.load_pruned(trained_run / "run", network(trained_run), quantized=True)
    assert is_quantized(net)
    assert (trained_run / "run/exports/model_weight_only.onnx").exists()
    (runtime,) = read_json(trained_run / "run/stages/benchmark.json")["runtimes"]
    assert runtime["file_bytes"]["quantized"] < runtime["file_bytes"]["dense"]
    assert out.count("benchmark: ") == 1


@pytest.mark.slow
def test_a_network_learns_to_be_quantized(trained_run):
    job = (
        *JOB,
        "stages=[quantize,export]",
        "quantize.method=qat",
        "quantize.weight_bits=4",
        "quantize.epochs=1",
    )
    out = done(*job, cwd=trained_run).out
    assert "% on search_val after 1 epochs" in out
    facts = read_json(trained_run / "run/stages/quantize.json")
    assert facts["method"] == "static_int8"
    assert facts["training"]["method"] == "qat"
    (file,) = read_json(trained_run / "run/stages/export.json")["quantized"]["files"]
    (runtime, *_) = file["runtimes"]
    assert runtime["agreement"] >= 90
    assert is_quantized(amc.load_pruned(trained_run / "run", network(trained_run), quantized=True))


@pytest.mark.slow
def test_a_budget_of_bytes_counts_the_bits_that_are_stored(trained_run):
    job = (*JOB, "budget=size", "budget.size_ratio=0.2", "budget.round_to=1")
    out = done(*job, "stages=[inspect,search,prune,quantize,report]", cwd=trained_run).out
    run = trained_run / "run"
    front = read_json(run / "pareto.json")["size"]["return"]
    assert all(0 < point["size_ratio"] <= 0.2 and point["size_bytes"] > 0 for point in front)
    assert read_json(run / "strategy.json")["budget"]["kind"] == "size"
    (told,) = re.findall(r"size_ratio (0\.\d+)", out)
    assert 0.1 < float(told) <= 0.2
    size = read_json(run / "stages/inspect.json")["size"]
    assert 0.25 < size["stored"] / size["float32"] < 0.6  # scales and biases weigh much in so small a network
    kept = size["float32"] * float(told)
    held = load_file(run / "quantization.safetensors").values()
    scales = sum(each.numel() for each in held if each.dtype == torch.float32)  # biases have as many
    assert kept == pytest.approx(sum(each.nbytes for each in held) + 4 * scales, rel=0.01)
    assert read_json(run / "stages/quantize.json")["size_ratio"] == pytest.approx(float(told), abs=1e-4)
    assert "over budget" not in out
    assert "missed" not in out
    out = done(*job, "stages=[quantize,report]", "quantize.method=fp16", cwd=trained_run).out
    (told,) = re.findall(r"quantize: size (0\.\d+), over budget\.size_ratio=0\.2", out)
    assert f"budget: size {told} (limit 0.2, missed)" in out


def test_bad_settings_are_refused_before_any_work(whole):
    base = composed(*JOB)
    assert "expected one of none, fp16" in check_error(base, "quantize.method=int8", cwd=whole[0])
    assert "budget.size_ratio is 2" in check_error(
        base, "budget.kind=size", "budget.size_ratio=2", cwd=whole[0]
    )
    assert "expected one of 2, 3" in check_error(base, "quantize.weight_bits=5", cwd=whole[0])
    for own in (["stages=[quantize]"], ["stages=[search]", "budget.kind=size", "budget.size_ratio=0.2"]):
        assert "'typo', which is no layer" in check_error(base, "quantize.exclude=[typo]", *own, cwd=whole[0])


@pytest.mark.slow
def test_an_opset_that_is_too_old_for_small_weights_is_refused_before_any_work():
    small = ("quantize.method=weight_only", "quantize.weight_bits=4")
    both, old = "stages=[quantize,export]", "export.opset=18"
    for own in (small, ("quantize.method=weight_only", "quantize.group=36"), ("quantize.method=binary",)):
        with pytest.raises(amc.SettingError, match=r"export\.opset is 18, expected 21 or more, or null"):
            check_values(composed(*FAKE, both, old, *own))
        check_values(composed(*FAKE, both, "export.opset=21", *own))
    check_values(composed(*FAKE, both, old))
    check_values(composed(*FAKE, "stages=[export]", old, *small))
    check_values(composed(*FAKE, both, old, "export.formats=[coreml]", *small))


def test_a_training_of_integers_is_one_under_finetune():
    missing, honest = "finetune.teacher=/nowhere/net.onnx", ("finetune.best=true", "data.unseen=8")
    learned = (*FAKE, "stages=[quantize]", "quantize.method=qat")
    with pytest.raises(amc.FileError, match=r"finetune\.teacher=/nowhere/net\.onnx: there is no such file"):
        check_values(composed(*learned, missing))
    with pytest.raises(amc.AmcError, match=r"finetune\.teacher_function 'nowhere\.teach'"):
        check_values(composed(*learned, "finetune.teacher_function=nowhere.teach"))
    assert judges_on_unseen(composed(*learned, *honest))
    assert not judges_on_unseen(composed(*learned, "finetune.until=0.9", "data.unseen=8"))
    rounded = (*FAKE, "stages=[quantize]", "quantize.method=static_int8")
    check_values(composed(*rounded, missing))
    assert not judges_on_unseen(composed(*rounded, *honest))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("data.calibration=1", "got 1 calibration image"),
        ("quantize.exclude=['*']", "no layer can be quantized"),
    ],
)
def test_a_quantization_that_fails_removes_nothing(wrong, message, trained_run):
    known = [trained_run / f"run/stages/{name}.json" for name in ("evaluate", "benchmark", "quantize")]
    for record in known:
        record.write_text("{}")
    refused(command(*JOB, wrong, "stages=[quantize]", cwd=trained_run), message)
    assert all(record.exists() for record in known)


@pytest.mark.slow
def test_another_training_leaves_the_quantization_before_it_out(trained_run):
    small = ("quantize.method=weight_only", "quantize.weight_bits=4", "quantize.group=9")
    old = trained_run / "run/stages/evaluate.json"
    old.write_text("{}")
    out = done(*JOB, *small, "stages=[quantize]", cwd=trained_run).out
    assert (
        "quantize: weight_only, weights of 4 bits, a scale for 9 inputs in 3 of 4 layers, 4 layers, " in out
    )
    assert not old.exists()
    out = done(*JOB, "train.epochs=2", "stages=[train,evaluate]", cwd=trained_run).out
    assert "quantize.json is left out: it is about another dense network" in out
    assert "quantized" not in read_json(old)
    refused(command(*JOB, "stages=[export]", cwd=trained_run), "run stages=[prune] on it first")


@pytest.mark.slow
def test_a_quantized_network_is_judged_in_the_same_batches_everywhere(trained_run):
    job = (*JOB, "quantize.method=dynamic_int8", "quantize.sensitivity_images=0", "data.test=150")
    done(*job, "stages=[quantize]", cwd=trained_run)
    config = composed(*job, "stages=[evaluate]")
    with inside(trained_run):
        run = open_run(config, Path("run"))
        _, model = simulation(run)
        found = answers_of(run)["quantized"](run.problem.splits.test().images)
        assert torch.equal(found, outputs_of(run, model))


@pytest.mark.parametrize(
    ("own", "why"),
    [
        (["stages=[search]"], "stage quantize is not in stages"),
        (["stages=[plan]", "plan.stages=[search]"], "stage quantize is not in stages"),
        (["quantize.method=weight_only"], "quantize.method is weight_only"),
        (["quantize.exclude=[head]"], "quantize.exclude leaves layers float"),
        (["quantize.tolerance=0.1"], "quantize.tolerance leaves layers float"),
        ([], None),
        (["quantize.method=qat", "quantize.weight_bits=4"], None),
        (["stages=[plan]", "plan.stages=[search,quantize]"], None),
        (["profile.int8=false", "stages=[search]"], None),
    ],
)
def test_a_job_that_makes_another_network_than_the_profile_times_is_known(own, why):
    assert other_than_int8(composed("profile.int8=true", "stages=[search,quantize]", *own)) == why


@pytest.mark.parametrize(
    ("group", "told", "layers"),
    [
        (12, " in 2 of 3 layers", ["first.0"]),
        (5, " in 0 of 3 layers", ["first.0", "second", "head"]),
        (3, "", []),
    ],
)
def test_layers_whose_inputs_a_group_does_not_divide_are_named(group, told, layers):
    settings = amc.QuantizeSettings("weight_only", group=group, rounding="nearest", sensitivity_images=0)
    made = quantize(randomised(Chain()), torch.randn(4, *SHAPE), settings)
    assert list(_weights(made)) == [f"a scale for {group} inputs{told}"]
    named = [f"layer {name!r} has " for name in layers]
    assert [note[: len(start)] for note, start in zip(made.notes, named, strict=True)] == named
    assert all(
        note.endswith(f"quantize.group={group} does not divide: one scale a channel") for note in made.notes
    )


@pytest.mark.slow
def test_a_search_under_the_latency_of_the_integer_network(tmp_path):
    cwd = workspace(tmp_path)
    with (cwd / "mynet.py").open("a") as file:
        file.write(WIDE)
    job = (*JOB, "budget=latency", "budget.latency_ratio=0.9", "budget.round_to=4", "profile.int8=true")
    job += ("profile.points=2", "profile.rounds=2", "profile.fit=3", "profile.held_out=2")
    job += ("profile.widths=false", "profile.tables=tables")
    job += ("model=mynet.wide", "data.image_size=16")
    out = done(*job, "stages=[train,search,prune]", cwd=cwd).out
    assert "budget: profile.int8=true times networks with all layers in static_int8, but stage" in out
    model = read_json(cwd / "run/latency_model.json")
    assert model["target"]["precision"] == "static_int8"
    outcome = command(*job, "profile.int8=false", "stages=[search]", cwd=cwd)
    refused(outcome, "is about static_int8 networks")
