"""Every recipe runs to its end at toy size: other images and sizes, the same stages and settings."""

from pathlib import Path

import pytest

import conf
from amc.models import ModelSpec, build
from amc.models.state_files import save_safetensors
from tests.experiments.helpers import done, read_json

RECIPES = sorted(path.stem for path in (Path(conf.__file__).parent / "experiment").glob("*.yaml"))
SMALL_IMAGES = {"resnet20_cifar10", "plain20_cifar10", "resnet56_cifar10"}
"""The recipe of the smallest network with residual blocks; the others are marked slow."""
TOY = (
    "data=fake", "data.num_classes=10", "data.train=160", "data.batch_size=8", "data.search_val=16",
    "data.calibration=64", "data.test=16", "train.epochs=1", "train.lr=0.01", "finetune.epochs=1",
    "finetune.lr=0.01", "agent.episodes=2", "agent.warmup_episodes=1", "latency.rounds=2",
    "latency.backends=[torch]", "threads=1", "run_dir=run",
)  # fmt: skip
DETECTOR = (
    *(word for word in TOY if "data.num_classes" not in word), "data.num_classes=91",
    "data.calibration=4", "data.search_val=2",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_to_its_end(name: str, tmp_path: Path) -> None:
    if name == "fasterrcnn_coco":
        spec = ModelSpec("fasterrcnn_resnet50_fpn", 91, (3, 64, 64))
        dense = build(spec, trust_dotted_path=False)  # detectors are not trained here
        save_safetensors(dense.state_dict(), tmp_path / "dense.safetensors")
        words = (*DETECTOR, "data.image_size=64", f"model.checkpoint={tmp_path / 'dense.safetensors'}")
    else:
        words = (
            *TOY,
            f"data.image_size={8 if name in SMALL_IMAGES else 32}",
            "compressor.sequential_images=0",
            "data.unseen=16",
            "proxies.networks=5",
        )
    done(f"experiment={name}", *words, cwd=tmp_path)
    if (tmp_path / "run/stages/sparsify.json").exists():
        rounds = read_json(tmp_path / "run/stages/sparsify.json")["rounds"]
        assert [found["density"] <= 0.5 for found in rounds] == [True] * 4
        return
    search = read_json(tmp_path / "run/stages/search.json")
    assert search["evaluations"] >= 1
    facts = read_json(tmp_path / "run/stages/prune.json")
    assert facts["sliced_equals_cut"]
    assert facts["macs_ratio"] < 1
