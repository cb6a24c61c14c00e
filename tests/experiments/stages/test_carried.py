import json
import subprocess
import sys
import zipfile

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from amc.export.metadata import with_metadata
from amc.loading import load_pruned
from experiments.report.carried import write_carried
from tests.experiments.helpers import FAKE, done

ABOUT = {
    "image_size": "[8, 8]",
    "shorter_side": "9",
    "upside_down": "true",
    "channels": '"RGB"',
    "layout": '"NCHW"',
    "mean": "[0.5, 0.4, 0.3]",
    "std": "[0.2, 0.25, 0.3]",
    "classifies": "true",
    "class_names": '["ant", "bee", "cat", "dog"]',
}


def predicted(folder, picture):
    """Run the script as a user would who has not installed this project, nor PyTorch."""
    script = str(folder / "predict.py")
    code = f"""
import runpy, sys
sys.modules.update(dict.fromkeys(("amc", "envs", "agents", "conf", "experiments", "torch")))
sys.argv = ["predict.py", {str(picture)!r}]
runpy.run_path({script!r}, run_name="__main__")
"""
    ended = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_an_exported_network_says_how_to_use_it_and_runs_without_the_project(tmp_path):
    stages = "stages=[train,search,prune,export]"
    done(*FAKE, "train.epochs=1", "agent=greedy", "model=resnet20", "run_dir=run", stages, cwd=tmp_path)
    folder = tmp_path / "run" / "exports"
    found = {entry.key: entry.value for entry in onnx.load(folder / "model.onnx").metadata_props}
    assert json.loads(found["mean"]) == [0.5, 0.5, 0.5]
    assert json.loads(found["image_size"]) == [8, 8]
    assert json.loads(found["channels"]) == "RGB"
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    told = predicted(folder, tmp_path / "picture.png")
    image = (torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255 - 0.5) / 0.25
    shares = load_pruned(tmp_path / "run")(image).softmax(1)[0]
    place = int(shares.argmax())
    assert f"{100 * shares[place].item():.2f}%  class {place}" in told.splitlines()[1].strip()
    assert "python predict.py" in (folder / "README.md").read_text()


@pytest.mark.parametrize("name", ["model.onnx", "model.tflite"])
def test_the_readme_and_the_script_name_what_is_there(tmp_path, name):
    form = {"model.onnx": "onnx", "model.tflite": "litert"}[name]
    write_carried(tmp_path, "net", ABOUT, [{"format": form, "file": f"exports/{name}", "bytes": 2048}])
    page, script = (tmp_path / "README.md").read_text(), (tmp_path / "predict.py").read_text()
    for part in (name, "shorter side has 9 pixels", "180 degrees", "ant, bee, cat, dog", "2.0 KiB"):
        assert part in page
    steps = [line for line in page.splitlines() if line[:2] in ("1.", "2.", "3.", "4.")]
    assert [step[0] for step in steps] == ["1", "2", "3", "4"]
    assert f"--network {name}" in script
    compile(script, "predict.py", "exec")


def test_other_formats_get_a_readme_alone(tmp_path):
    assert write_carried(tmp_path, "net", ABOUT, [{"format": "openvino", "file": "a.xml", "bytes": 1}]) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md"]


def test_metadata_lies_behind_a_file_and_gives_the_same_bytes(tmp_path):
    content = with_metadata(b"TFL3 network", ABOUT)
    assert content.startswith(b"TFL3 network")
    assert content == with_metadata(b"TFL3 network", ABOUT)
    (tmp_path / "model.tflite").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "model.tflite") as parts:
        assert json.loads(parts.read("metadata.json"))["class_names"] == ["ant", "bee", "cat", "dog"]
    assert with_metadata(b"x", {}) == b"x"


@pytest.mark.slow
def test_a_tflite_runs_with_its_metadata(tmp_path):
    formats = "export.formats=[litert]"
    stages = "stages=[train,search,prune,export]"
    done(*FAKE, "train.epochs=1", "agent=greedy", "run_dir=run", formats, stages, cwd=tmp_path)
    Image.new("RGB", (20, 12), "red").save(tmp_path / "picture.png")
    assert "class " in predicted(tmp_path / "run" / "exports", tmp_path / "picture.png")
