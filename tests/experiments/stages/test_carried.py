import json
import runpy
import subprocess
import sys
import types
import zipfile
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from amc.data.files.decoding import _read
from amc.export.metadata import described, with_metadata
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


def predicted(folder, picture, *options):
    """Run the script as a user would who has not installed this project, nor PyTorch."""
    script = str(folder / "predict.py")
    code = f"""
import runpy, sys
sys.modules.update(dict.fromkeys(("amc", "envs", "agents", "conf", "experiments", "torch")))
sys.argv = ["predict.py", {str(picture)!r}, *{options!r}]
runpy.run_path({script!r}, run_name="__main__")
"""
    ended = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.slow
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
    steps = [line for line in page.splitlines() if line[:1].isdigit() and line[1] == "."]
    assert [step[0] for step in steps] == ["1", "2", "3", "4", "5"]
    assert f"--network {name}" in script
    compile(script, "predict.py", "exec")


def interpreter_of(dtype, target, seen):
    """Return a stand-in for LiteRT's module: a network that gives its input's first values back."""

    class Interpreter:
        def __init__(self, model_path):
            assert model_path.endswith(".tflite")

        def allocate_tensors(self):
            pass

        def get_input_details(self):
            return [{"index": 0, "dtype": dtype, "quantization": (0.5, -3)}]

        def get_output_details(self):
            return [{"index": 1, "dtype": target, "quantization": (0.25, 2)}]

        def set_tensor(self, place, image):
            assert (place, image.dtype) == (0, dtype)
            seen.append(image)

        def invoke(self):
            pass

        def get_tensor(self, place):
            assert place == 1
            return np.array([[2, 6]], target)

    module = types.ModuleType("ai_edge_litert.interpreter")
    module.Interpreter = Interpreter
    return module


INTEGERS = {
    "format": "litert",
    "file": "exports/model_static_int8.tflite",
    "bytes": 1,
    "precision": "static_int8",
}


@pytest.mark.parametrize(("dtype", "target"), [(np.int8, np.float32), (np.float32, np.int8)])
def test_the_script_gives_integers_to_a_file_that_takes_them(tmp_path, monkeypatch, dtype, target):
    seen = []
    write_carried(tmp_path, "net", ABOUT, [INTEGERS])
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", interpreter_of(dtype, target, seen))
    (tmp_path / "model_static_int8.tflite").touch()
    script = runpy.run_path(str(tmp_path / "predict.py"))
    _, run = script["load"](tmp_path / "model_static_int8.tflite")
    outputs = run(np.array([0.2, 0.3, -1000, 1000], np.float32))
    expected = [-3, -2, -128, 127] if dtype is np.int8 else [0.2, 0.3, -1000, 1000]
    assert seen[0].tolist() == pytest.approx(expected)
    assert outputs.tolist() == ([[2, 6]] if target is np.float32 else [[0, 1]])
    page = (tmp_path / "README.md").read_text()
    assert "`model_static_int8.tflite` takes signed 8-bit integers" in page
    write_carried(tmp_path, "net", ABOUT, [{**INTEGERS, "precision": "float32"}])
    assert "8-bit" not in (tmp_path / "README.md").read_text()


def splits_of(channels):
    """Return what ``described`` reads of a data set."""
    return SimpleNamespace(
        input_shape=(channels, 8, 6), shorter_side=None, upside_down=False, class_names=(),
        mean=(0.5,) * channels, std=(0.25,) * channels,
    )  # fmt: skip


def test_grey_pictures_have_one_channel(tmp_path):
    about = described(splits_of(1), classifies=True)
    assert json.loads(about["channels"]) == "grey"
    write_carried(tmp_path, "net", about, [{"format": "onnx", "file": "exports/model.onnx", "bytes": 1}])
    assert "shape (N, 1, 8, 6), one channel, grey" in (tmp_path / "README.md").read_text()
    pixels = np.arange(48, dtype=np.uint8).reshape(8, 6)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    script = runpy.run_path(str(tmp_path / "predict.py"))
    found = script["pixels"](tmp_path / "picture.png", script["ABOUT"])
    np.testing.assert_allclose(found, ((pixels / 255 - 0.5) / 0.25)[None, None], rtol=1e-5)
    Image.fromarray(pixels).convert("RGB").save(tmp_path / "picture.png")
    assert script["pixels"](tmp_path / "picture.png", script["ABOUT"]).shape == (1, 1, 8, 6)


@pytest.mark.parametrize("values", [np.uint16, np.int32, np.float32])
def test_the_script_reads_grey_pictures_of_16_bits_as_the_training_does(tmp_path, values):
    write_carried(tmp_path, "net", ABOUT, [{"format": "onnx", "file": "exports/model.onnx", "bytes": 1}])
    script = runpy.run_path(str(tmp_path / "predict.py"))
    most = 255 if values is np.float32 else 65535
    array = (np.arange(90).reshape(9, 10) * (most / 89)).astype(values)
    Image.fromarray(array).save(tmp_path / "picture.tiff")
    about = {**script["ABOUT"], "image_size": [9, 10], "shorter_side": None, "upside_down": False}
    read = np.asarray(_read(str(tmp_path / "picture.tiff")), np.float32).transpose(2, 0, 1) / 255
    mean, std = (np.array(about[name])[:, None, None] for name in ("mean", "std"))
    found = script["pixels"](tmp_path / "picture.tiff", about)
    np.testing.assert_allclose(found[0], (read - mean) / std, atol=1e-5)
    assert read.max() == 1
    if values is not np.uint16:
        Image.fromarray(array - values(9)).save(tmp_path / "picture.tiff")
        with pytest.raises(SystemExit, match="grey values from -9"):
            script["pixels"](tmp_path / "picture.tiff", about)


def test_images_that_no_picture_is_get_no_script(tmp_path):
    about = described(splits_of(2), classifies=True)
    assert json.loads(about["channels"]) is None
    file = {"format": "onnx", "file": "exports/model.onnx", "bytes": 1}
    assert write_carried(tmp_path, "net", about, [file]) == []
    page = (tmp_path / "README.md").read_text()
    assert "shape (N, 2, 8, 6), channels as in the training data" in page
    assert "predict.py" not in page


def test_other_formats_get_a_readme_alone(tmp_path):
    assert write_carried(tmp_path, "net", ABOUT, [{"format": "openvino", "file": "a.xml", "bytes": 1}]) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md"]


def test_the_readme_tells_each_file_by_what_it_is(tmp_path):
    onnx_file = {"format": "onnx", "file": "exports/model.onnx", "bytes": 1, "batch": None}
    program = {"format": "executorch", "file": "exports/model.pte", "bytes": 1, "batch": 1}
    lite = {"format": "litert", "file": "exports/model.tflite", "bytes": 1, "batch": 1}
    pages = {}
    for name, files in {"both": [onnx_file, program], "pte": [program], "tflite": [lite]}.items():
        write_carried(tmp_path, "net", ABOUT, files)
        pages[name] = (tmp_path / "README.md").read_text()
    assert "One batch of images, float32, shape (N, 3, 8, 8)" in pages["both"]
    assert "`model.pte` takes 1 image at a time: N is 1." in pages["both"]
    assert "`model.onnx` itself holds all this, as metadata properties." in pages["both"]
    assert "One image, float32, shape (1, 3, 8, 8)" in pages["pte"]
    assert not any(word in pages["pte"] for word in ("metadata", "N is"))
    assert "unzip -p model.tflite metadata.json" in pages["tflite"]
    assert "properties" not in pages["tflite"]


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
    stages = "stages=[train,search,prune,quantize,export]"
    own = ("agent=greedy", "quantize.sensitivity_images=0", "run_dir=run")
    done(*FAKE, "train.epochs=1", *own, formats, stages, cwd=tmp_path)
    Image.new("RGB", (20, 12), "red").save(tmp_path / "picture.png")
    folder, picture = tmp_path / "run" / "exports", tmp_path / "picture.png"
    whole = predicted(folder, picture)
    assert "class " in whole
    integers = predicted(folder, picture, "--network", "model_static_int8.tflite")

    def shares(told):
        return {line.split("%")[1].strip(): float(line.split("%")[0]) for line in told.splitlines()[1:]}

    assert shares(integers) == pytest.approx(shares(whole), abs=5)
