import pytest
import torch
from torch import nn

from amc.errors import AmcError
from experiments.run.run import open_run
from experiments.stages.measuring.plan import _images, _step, in_short
from tests.experiments.helpers import TINY, amc, check_error, composed, done, inside, read_json, refused


def test_a_plan_is_printed_and_nothing_is_trained(cwd):
    told = done("plan", *TINY, "budget.macs_ratios=[0.5,0.7]", "run_dir=run", cwd=cwd).out
    for part in (
        "macs <= 0.5",
        "reachable",
        "32 images to judge on",
        "measured on two",
        "fine-tuning about",
    ):
        assert part in told, part
    assert "2 times 4 episodes" in told
    facts = read_json(cwd / "run" / "stages" / "plan.json")
    assert 0 < facts["reachable"]["macs"][0] < 0.5 < facts["reachable"]["macs"][1] <= 1
    assert facts["search_seconds"] >= 8 * facts["evaluation_seconds"] > 0
    assert facts["finetune_seconds"] > 0
    assert facts["peak_memory_bytes"] > 2**20
    left = {path.name for path in (cwd / "run").iterdir()}
    assert left.isdisjoint({"dense.safetensors", "evaluations.jsonl", "search.jsonl", "strategy.json"})
    memory = read_json(cwd / "run/overrides.json")
    assert memory["overrides"] == [*TINY, "budget.macs_ratios=[0.5,0.7]"]
    assert (memory["stages"], memory["unfinished"]) == (None, None)


def test_training_labels_that_the_network_does_not_have_are_refused():
    with pytest.raises(AmcError, match="labels run from 0 to 2, but the network has 2 outputs"):
        _step(nn.Linear(3, 2), torch.zeros(2, 3), torch.tensor([0, 2]))


@pytest.mark.parametrize("batch", [100, 5000])
def test_a_plan_counts_the_images_that_batches_are_drawn_from(cwd, batch):
    with inside(cwd):
        run = open_run(composed(*TINY, f"data.batch_size={batch}", "stages=[plan]"), cwd / "run")
        images = len(run.problem.splits.order.rows)
        assert _images(run)["to train on"] == images != batch * run.problem.splits.steps_per_epoch


def test_a_plan_counts_the_images_that_the_dense_network_chooses(cwd):
    chosen = ("data.select=herding", "data.select_calibration=6", "data.select_search_val=10")
    with inside(cwd):
        run = open_run(composed(*TINY, *chosen, "stages=[plan]"), cwd / "run")
        assert "10 images to judge on, 6 to refit on" in in_short(run)
        counts = _images(run)
    assert (counts["for calibration"], counts["to judge candidates on"]) == (6, 10)


def test_a_plan_changes_nothing_that_a_folder_remembers(trained_run):
    files = [trained_run / "run" / name for name in ("overrides.json", ".hydra/overrides.yaml")]
    before = [file.read_bytes() for file in files]
    told = done("plan", "run_dir=run", "budget.macs_ratio=0.9", cwd=trained_run).out
    assert "macs <= 0.9" in told
    assert [file.read_bytes() for file in files] == before


@pytest.mark.slow
def test_a_plan_counts_a_training_that_changed_settings_begin_anew(trained_run):
    plan = ("plan", "run_dir=run", "quantize.method=qat", "quantize.epochs=4")
    for words, trains in (((), False), (("train.epochs=3",), True)):
        told = done(*plan, *words, cwd=trained_run).out
        assert ("training the dense network about" in told) == trains
    assert "(4 epochs" in done(*plan, "stages=[quantize]", cwd=trained_run).out


@pytest.mark.slow
def test_a_plan_counts_the_stages_that_it_is_given(cwd):
    job = ("finetune.epochs=5", "choose.candidates=3", "choose.epochs=2", "schedule.ratios=[0.9,0.7]")
    for stages, searches, epochs in (
        ("train,search,choose,prune,finetune", "; 4 episodes", "(11 epochs"),
        ("schedule,compare", "; 3 times 4 episodes", "(12 epochs"),
        ("evaluate", "; none of the stages searches", "(0 epochs"),
    ):
        told = done("plan", *TINY, *job, f"stages=[{stages}]", "run_dir=run", cwd=cwd).out
        assert searches in told, told
        assert epochs in told, told
    reached = ("budget.macs_ratio=0.5", "schedule.ratios=[0.9,0.5]")  # the last ratio adds no step
    told = done("plan", *TINY, *job, *reached, "stages=[schedule]", "run_dir=run", cwd=cwd).out
    assert "; 2 times 4 episodes" in told
    assert "(1 epochs" in told
    refused(amc("plan", *TINY, "stages=[finetun]", cwd=cwd), "unknown stage 'finetun'")


def test_a_plan_of_a_job_that_would_be_refused_is_refused(cwd):
    base = composed(*TINY, "stages=[plan]")
    for given, line in {
        "plan.stages=[train,schedule] schedule.ratios=[0.3]": "schedule.ratios ends at 0.3, below the budget",
        "plan.stages=[search,schedule]": "stages has schedule and search; expected one of them",
        "plan.stages=[proxies]": "stage proxies judges networks on images that nothing else uses",
        "plan.stages=[sparsify] sparsify.densities=[2]": "sparsify.densities is [2.0]; expected falling",
        "plan.stages=[schedule] reward=accuracy_macs": "stage schedule has to meet schedule.ratios",
    }.items():
        assert line in check_error(base, *given.split(), cwd=cwd)
    words = ("plan", *TINY, "stages=[train,schedule]", "schedule.ratios=[0.3]", "run_dir=run")
    refused(amc(*words, cwd=cwd), "schedule.ratios ends at 0.3, below the budget of 0.5")


def test_a_plan_of_a_budget_out_of_reach_is_refused(cwd):
    refused(amc("plan", *TINY, "budget.macs_ratio=0.001", "run_dir=run", cwd=cwd), "smallest allowed network")
    assert not (cwd / "run").exists()
