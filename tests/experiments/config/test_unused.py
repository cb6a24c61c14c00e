"""Settings that are given and that nothing in the job reads are noted, and no others."""

import pytest

from amc.strategy import GroupWidth, Strategy
from experiments.config.unused import Job, remarks
from tests.experiments.helpers import TINY, composed, done, workspace


def told(*overrides, calibration=16, **facts):
    return [*remarks(Job(composed(*TINY, *overrides), calibration, **facts), overrides)]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            "stages=[train] model.checkpoint=f.pth train.epochs=50",
            "train.epochs=50: no effect, as model.checkp",
        ),
        (
            "stages=[train] model.pretrained=true train.lr=1",
            "train.lr=1: no effect, as model.pretrained=true",
        ),
        (
            "stages=[train] train.lora_rank=4",
            "train.lora_rank=4: no effect, as train.method=full has no adapters",
        ),
        (
            "stages=[finetune] finetune.lora_rank=4",
            "finetune.lora_rank=4: no effect, as finetune.method=full",
        ),
        ("stages=[finetune] finetune.hint_maps=fixed", "no effect, as finetune.hint_weight is 0"),
        ("stages=[finetune] finetune.sync_norms=false", "no effect, as one process trains"),
        (
            "stages=[train] train.teacher_cache=x",
            "no effect, as train.distill_weight is 0: no teacher's logits",
        ),
        (
            "stages=[prune] tracker.mode=online",
            "tracker.mode=online: no effect, as tracker=none does not read it",
        ),
        (
            "stages=[search] agent=greedy agent.episodes=9",
            "agent.episodes=9: no effect, as agent=greedy makes",
        ),
        (
            "stages=[prune] compressor.refit=false prune.held_out=0",
            "no effect, as compressor.refit=false refits",
        ),
        (
            "stages=[prune] prune.sequential=false prune.held_out=0",
            "prune.held_out=0: no effect, as prune.seque",
        ),
        ("stages=[search] compressor.activation_rounds=3", "no effect, as compressor.sequential_images=0"),
        (
            "stages=[search] compressor.measured_in_sequence=true",
            "no effect, as compressor.sequential_images=0",
        ),
        (
            "stages=[search] compressor.sequential_images=64",
            "no effect above 16, as there are 16 calibration",
        ),
        (
            "stages=[quantize] quantize.method=none quantize.ranges=mse",
            "quantize.method=none quantizes nothing",
        ),
        (
            "stages=[quantize] quantize.method=fp16 quantize.ranges=mse",
            "quantize.method=fp16 stores floats of 16",
        ),
        (
            "stages=[quantize] quantize.epochs=9 quantize.lr=1",
            "quantize.epochs=9, quantize.lr=1: no effect, as",
        ),
        ("stages=[quantize] quantize.percentile=99", "no effect, as quantize.ranges=mse takes no percentile"),
        (
            "stages=[quantize] quantize.method=qat finetune.until=0.9",
            "finetune.until=0.9: no effect, as quantize",
        ),
        (
            "stages=[sparsify] budget.macs_ratio=0.1",
            "budget.macs_ratio=0.1: no effect, as stage sparsify leaves",
        ),
        (
            "stages=[sparsify] compressor.prune_coupled=false",
            "compressor.prune_coupled=false: no effect, as stage",
        ),
        ("stages=[sparsify] workers.count=4", "workers.count=4: no effect, as stage sparsify judges in this"),
    ],
)
def test_what_nothing_reads_is_noted_in_one_line(words, line):
    (found,) = told(*words.split())
    assert line in found
    assert "\n" not in found


@pytest.mark.parametrize(
    "words",
    [
        "stages=[train] train.epochs=50 tracker.mode=online tracker=wandb",
        "stages=[search] train.lora_rank=4 finetune.lora_rank=4 quantize.epochs=9 prune.sequential=false",
        "stages=[finetune] finetune.method=lora finetune.lora_rank=4 finetune.sync_norms=true",
        "stages=[finetune] finetune.processes=2 finetune.sync_norms=false finetune.teacher_cache=x",
        "stages=[finetune] finetune.hint_weight=1 finetune.hint_maps=fixed train.teacher_cache=null",
        "stages=[search] agent.episodes=9 compressor.sequential_images=16 compressor.activation_rounds=3",
        "stages=[search] compressor.activation_rounds=0 compressor.measured_in_sequence=false",
        "stages=[prune] prune.held_out=0 prune.activation_rounds=1",
        "stages=[quantize] quantize.method=qat quantize.epochs=9 quantize.rounding=nearest",
        "stages=[quantize] quantize.ranges=percentile quantize.percentile=99",
        "stages=[search,sparsify] budget.macs_ratio=0.3 compressor.prune_coupled=false prune.held_out=0",
        "stages=[sparsify] sparsify.order=magnitude compressor.exclude=[3] budget.fit=cut",
        "stages=[train,search] experiment=resnet20_cifar10",
        "stages=[search] budget=latency profile.points=5",
    ],
)
def test_what_counts_is_not_noted(words):
    assert told(*words.split()) == []


def test_a_folder_that_is_profiled_keeps_its_profile():
    words = ("stages=[search]", "budget=latency", "profile.points=5", "profile.rounds=3")
    (line,) = told(*words, profiled=True)
    assert line.startswith(
        "profile.points=5: no effect, as the folder is profiled already; run stages=[profile]"
    )
    assert told(*words, profiled=True, remembered={"profile.points": "5"}.get) == []
    assert told(*words, "stages=[profile,search]", profiled=True) == []


def test_a_strategy_of_other_multiples_is_noted(tmp_path):
    file = tmp_path / "strategy.json"
    groups = tuple(GroupWidth(name, 13, kept) for name, kept in (("a", 8), ("b", 13), ("c", 5)))
    Strategy(groups, 0.5, 0.5, 0).save(file)
    words = ("stages=[prune]", f"strategy={file}")
    (line,) = told(*words, "budget.round_to=8")
    assert line == f"budget.round_to=8: no effect, as strategy={file} keeps 5 channels of group c"
    assert told(*words, "budget.round_to=1") == []


def test_the_command_tells_it_beside_the_budget(tmp_path):
    words = (*TINY, "agent=greedy", "stages=[train,search]", "tracker.mode=online", "run_dir=run")
    out = done(*words, cwd=workspace(tmp_path)).out
    assert "settings: tracker.mode=online: no effect, as tracker=none does not read it\n" in out
    assert out.count("settings: ") == 2, out  # TINY gives agent.episodes
