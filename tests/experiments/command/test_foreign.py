"""Run folders that another has made: their settings are data, nothing in them is run or leads out of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

import conf
from amc import load_pruned
from amc.errors import AmcError, FileError
from amc.files import atomic_write_text, temporary_folder
from amc.strategy import Strategy
from experiments.command.foreign import is_override, objection
from experiments.command.memory.content import FILE
from experiments.command.memory.signature import is_signed, sign
from experiments.command.tidy import check_links, remove_temporary
from experiments.config import schema
from experiments.config.sections.agents import AGENT_SECTIONS
from experiments.config.sections.data import DATA_SECTIONS
from experiments.config.stages import STAGES
from tests.experiments.helpers import FAKE, SMALL, TINY, amc, artifacts, done, read_json, refused, workspace

RULES = schema.rules()
CODE = """
import pathlib
pathlib.Path({marker!r}).touch()
def __getattr__(name): raise AttributeError(name)
"""
HOSTILE = {
    "names code": (
        "model=subprocess.getoutput", "model=evil:run", "+model=os.system", "model.name=os.system",
        "reward=antigravity.fly", "reward=evil:score", "model='os.system'", 'model="evil.make"',
        "model.kwargs={_target_: os.system}", "model.kwargs._target_=os.system",
        "++model.kwargs.a._target_=x",
        "model.kwargs={a: [{_target_: os.system}]}", "model=timm:../x", "model=hf-hub:evil/net",
    ),
    "is no setting": (
        "+hydra.callbacks.x._target_=amc.latency.commands.command", "hydra.run.dir=/tmp",
        "hydra/launcher=joblib",
        "hydra.job_logging.handlers.x.class=os.system", "+hydra.searchpath=[/tmp]", "hydra.mode=MULTIRUN",
        "+evil=1", "latency={ssh: {host: evil}}", "latency.ssh={options: [a]}", "_target_=os.system",
        "defaults=[x]",
    ),
    "reads other values": (
        "name=${oc.env:SECRET}", "tracker.project=${oc.env:SECRET}", "model.kwargs.x='${oc.env:SECRET}'",
        "data.mean=[0,${oc.env:SECRET},0]", "model.kwargs={a: {b: '${oc.env:SECRET}'}}", "reward=${oc.env:X}",
    ),
    "host": (
        "latency.ssh.host=evil", "latency.ssh.options=['-oProxyCommand=evil']", "latency.ssh.python=evil",
        "latency.adb.arguments=x", "latency.adb.serial=x", "latency.adb.thermal_file=x", "tracker=wandb",
        "tracker.mode=online", "tracker.entity=evil", "workers.address=evil",
    ),
    "names files": (
        "model.checkpoint=/etc/passwd", "model.start=../x.pth", "strategy='~/x.json'", "data.root=/",
        "data.train=../x",
        "data.test=/etc", "data.search_val_dir=a/../../b", "profile.tables=/tmp",
    ),
    "names a file of the configuration": ("agent=../../x", "data=/tmp/x", "experiment=a/b"),
    "put together": (
        "~tracker", "~model.kwargs", "seed=1,2", "seed=choice(1,2)", "model@data=x", "agent={name: ddpg}",
        "workers={kind: ray, address: evil}", "seed=range(1,4)",
    ),
    "cannot be read": ("name='", "data.mean=[1", "x"),
}  # fmt: skip
PLAIN = (
    *SMALL, "model=resnet20", "model=timm:resnet18.a1_in1k", "model=torchvision:vgg16_bn",
    "reward=likeness", "+model.kwargs.width=8",
    "model.kwargs={a: [1, x]}", "experiment=resnet20_cifar10", "experiment=null", "tracker=none",
    "workers=process",
    "agent=ddpg_paper", "agent.guide=best", "budget.macs_ratios=[0.3,0.5]", "++seed=1", "strategy=null",
    "compressor.exclude=['*.conv1']", "data.mean=[0.1,0.2,0.3]", "name='a (1)'", "data.download=true",
)  # fmt: skip


@pytest.mark.parametrize(("reason", "text"), [(r, t) for r, texts in HOSTILE.items() for t in texts])
def test_a_setting_that_only_the_user_may_decide(reason: str, text: str, tmp_path: Path) -> None:
    found = objection(text, tmp_path, RULES)
    assert found is not None
    assert reason in found


@pytest.mark.parametrize("text", PLAIN)
def test_plain_data_is_accepted(text: str, tmp_path: Path) -> None:
    assert objection(text, tmp_path, RULES) is None


def test_files_in_the_folder_may_be_named(tmp_path: Path) -> None:
    assert objection(f"strategy={tmp_path}/x/strategy.json", tmp_path, RULES) is None
    assert objection(f"strategy={tmp_path}/../strategy.json", tmp_path, RULES) is not None


def test_every_key_of_every_published_recipe_is_plain_data(tmp_path: Path) -> None:
    folder = Path(conf.__file__).parent
    for path in (*folder.glob("experiment/*.yaml"), folder / "config.yaml"):
        for key, value in yaml.safe_load(path.read_text()).items():
            if key not in ("defaults", "hydra", "run_dir"):
                pairs = value.items() if isinstance(value, dict) else [(None, value)]
                for inner, _ in pairs:
                    full = key if inner is None else f"{key}.{inner}"
                    assert objection(f"{full}=1", tmp_path, RULES) is None or full in ("stages",), full


def test_every_field_that_holds_free_text_is_judged() -> None:
    """A new field of texts must be sorted: data with a fixed meaning here, else one of the rules."""
    harmless = {
        "name", "device", "stages", "plan.stages", "data.name", "data.select",
        "train.precision", "train.hint_maps", "train.method", "finetune.hint_maps", "finetune.method",
        "finetune.precision", "agent.name", "agent.guide", "agent.acts", "agent.select",
        "budget.kind", "budget.fit",
        "compressor.order", "compressor.refit", "compressor.precision", "compressor.exclude",
        "export.formats", "quantize.method", "quantize.ranges", "quantize.rounding", "quantize.exclude",
        "latency.backends", "profile.backend", "serve.backend", "sparsify.order", "workers.kind",
        "evaluate.corruptions",
    }  # fmt: skip
    texts = {key for key in RULES.keys if _is_text(key)}
    judged = {*RULES.paths, *RULES.inner_paths, *RULES.code, "run_dir", *RULES.free}
    judged |= {key for key in texts if any(key == p or key.startswith(p) for p in RULES.personal)}
    assert texts - judged - harmless == set(), "sort these new settings"


def _is_text(key: str) -> bool:
    nodes = [schema.Config, *DATA_SECTIONS, *AGENT_SECTIONS.values()]
    for node in nodes:
        prefix = {"data": "data.", "agent": "agent."}.get(_place(node), "")
        kinds = {f"{prefix}{name}": kind for name, kind in _kinds(node)}
        if "str" in str(kinds.get(key, "")):
            return True
    return False


def _place(node: type) -> str:
    if node in DATA_SECTIONS:
        return "data"
    return "agent" if node in AGENT_SECTIONS.values() else ""


def _kinds(node: type, prefix: str = "") -> list[tuple[str, object]]:
    import typing

    hints = typing.get_type_hints(node)
    found = []
    for each in fields(node):
        kind = hints[each.name]
        if isinstance(kind, type) and hasattr(kind, "__dataclass_fields__"):
            found += _kinds(kind, f"{prefix}{each.name}.")
        else:
            found.append((f"{prefix}{each.name}", kind))
    return found


@pytest.mark.parametrize("text", ["--multirun", "-m", "--config-dir=/tmp", "--cfg", "x", "~", "", "=1"])
def test_options_are_no_overrides(text: str) -> None:
    assert not is_override(text)


@pytest.mark.parametrize("text", ["+my-presets=fast", "~a-b", "++model.kwargs.some-key=1", "model@a-b=x"])
def test_a_key_may_have_a_hyphen(text: str) -> None:
    assert is_override(text)


# --- whole folders


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A current directory with a finished run of a network of the zoo."""
    cwd = tmp_path_factory.mktemp("finished")
    job = (
        *SMALL,
        "model=resnet20",
        "agent=random",
        "agent.episodes=3",
        "stages=[train,search,prune,finetune]",
    )
    done(*job, "run_dir=run", cwd=cwd)
    return cwd


@pytest.fixture
def cwd(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "cwd")


def remember(folder: Path, *overrides: str, **others: object) -> None:
    """Write what another has remembered; there is no signature, or one of another's key."""
    data = read_json(folder / FILE)
    data["overrides"] += overrides
    (folder / FILE).write_text(json.dumps({**data, **others}))


@pytest.mark.parametrize("stage", [*STAGES, "all"])
def test_no_stage_runs_code_of_a_foreign_folder(stage: str, cwd: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    (cwd / "evil.py").write_text(CODE.format(marker=str(marker)))
    stages = () if stage == "all" else (f"stages=[{stage}]",)
    hostile = (
        "reward=evil.score",
        "model=evil.make",
        "+hydra.callbacks.x._target_=evil.X",
        "latency.ssh.host=evil",
    )
    for text in hostile:
        remember(cwd / "run", text)
        before = artifacts(cwd)
        refused(amc("run_dir=run", *stages, cwd=cwd), "not made by this user", text.split("=")[0].lstrip("+"))
        assert artifacts(cwd) == before
    assert not marker.exists()


@pytest.mark.slow
def test_the_person_at_the_keyboard_may_give_the_setting(cwd: Path) -> None:
    workspace(cwd)
    remember(cwd / "run", "reward=elsewhere.score")
    done("run_dir=run", "stages=[search]", "reward=mynet.score", cwd=cwd)
    memory = read_json(cwd / "run" / FILE)
    assert is_signed({k: memory[k] for k in ("overrides", "stages", "unfinished")}, memory["signature"])
    done("run_dir=run", "stages=[search]", cwd=cwd)


@pytest.mark.parametrize(
    "change",
    [
        *("no signature", "changed"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("another signature", "no home")),
    ],
)
def test_a_signature_holds_for_this_user_and_these_settings(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cwd = workspace(tmp_path)
    done(*TINY, "run_dir=run", "stages=[train]", cwd=cwd)
    done("run_dir=run", "stages=[inspect]", cwd=cwd)
    data = read_json(cwd / "run" / FILE)
    if change == "no signature":
        del data["signature"]
    elif change == "another signature":
        data["signature"] = "0" * 64
    elif change == "changed":
        data["overrides"].append("seed=1")
    else:
        monkeypatch.delenv("XDG_CONFIG_HOME")
        monkeypatch.delenv("HOME")
    (cwd / "run" / FILE).write_text(json.dumps(data))
    refused(amc("run_dir=run", "stages=[inspect]", cwd=cwd), "model=mynet.make (names code)", "model=...")
    done("run_dir=run", "model=mynet.make", "stages=[inspect]", cwd=cwd)


def test_the_key_is_readable_by_its_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    signature = sign({"a": 1})
    (key,) = (tmp_path / "amc-search").iterdir()
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert is_signed({"a": 1}, signature)
    assert not is_signed({"a": 2}, signature)
    key.chmod(0o644)
    assert not is_signed({"a": 1}, signature)
    assert sign({"a": 1}) is None
    monkeypatch.setenv("XDG_CONFIG_HOME", "/dev/null")
    assert sign({"a": 1}) is None


def test_settings_of_another_that_are_data_are_used(cwd: Path) -> None:
    remember(cwd / "run", "seed=7", signature=None)
    done("run_dir=run", "stages=[inspect]", cwd=cwd)
    assert read_json(cwd / "run/provenance.json")["seed"] == 7


@pytest.mark.parametrize("part", ["overrides", "stages", "unfinished"])
@pytest.mark.parametrize(
    "text", ["--multirun", "--config-dir=.", "hydra.run.dir=elsewhere;", "stages=[os.system]"]
)
def test_no_part_smuggles_in_an_option(part: str, text: str, cwd: Path) -> None:
    remember(cwd / "run", **{part: [text] if part == "overrides" else text})
    refused(amc("run_dir=run", cwd=cwd), "run")
    assert not (cwd / "elsewhere").exists()


def test_what_a_killed_command_leaves_is_removed(tmp_path: Path) -> None:
    exports = tmp_path / "exports"
    exports.mkdir()
    (exports / ".mine").mkdir()
    atomic_write_text(exports / "model.onnx", "kept")
    with temporary_folder(exports / "model.xml") as folder:
        (folder / "model.bin").write_text("half")
        left = shutil.copytree(folder, exports / folder.name.replace("model", "killed"))
    file = left.with_name(left.name.replace("killed", "other"))
    file.write_text("half")
    assert {left, file} < set(exports.iterdir())
    assert not folder.exists()
    remove_temporary(tmp_path)
    assert sorted(path.name for path in exports.iterdir()) == [".mine", "model.onnx"]


def test_links_are_not_followed(cwd: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    shutil.copytree(cwd / "run", outside)
    before = artifacts(outside)
    names = [path.relative_to(outside) for path in sorted(outside.rglob("*"))] + [
        Path("exports"),
        Path("agent.zip"),
    ]
    assert len(names) > 12
    for name in names:
        run = shutil.copytree(cwd / "run", cwd / "linked")
        target = run / name
        if target.is_dir():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)
        target.symlink_to(outside / name)
        with pytest.raises(FileError, match=f"a symbolic link, {re.escape(str(name))}: .* elsewhere"):
            check_links(run)
        if str(name) in {"overrides.json", ".hydra", "search.jsonl", "exports"}:
            outcome = amc("run_dir=linked", "stages=[search,export]", cwd=cwd)
            assert "elsewhere" in refused(outcome, "symbolic link", str(name))
        shutil.rmtree(run)
    assert artifacts(outside) == before


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


@pytest.mark.parametrize("name", ["search.jsonl", ".lock", "stages/train.json", ".hydra/config.yaml"])
@pytest.mark.parametrize("make", [os.mkfifo, _socket])
def test_what_a_command_would_wait_for_is_refused(
    name: str, make: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the whole path may be too long for a socket
    (tmp_path / name).parent.mkdir(exist_ok=True)
    make(tmp_path / name)
    with pytest.raises(FileError, match=f"holds a pipe, a socket or a device, {name}; expected files"):
        check_links(tmp_path)


@pytest.mark.slow
def test_modules_beside_the_files_are_not_imported(cwd: Path, tmp_path: Path) -> None:
    run, marker = cwd / "run", tmp_path / "marker"
    names = {name.partition(".")[0] for name in sys.modules} - {"__main__", "builtins", "sys"}
    names |= {
        "ray",
        "timm",
        "wandb",
        "optuna",
        "coremltools",
        "openvino",
        "tensorrt",
        "tensorboard",
        "sitecustomize",
    }
    for name in sorted(name for name in names if name.isidentifier()):
        (run / f"{name}.py").write_text(CODE.format(marker=str(marker)))
    (run / "hydra_plugins").mkdir()
    (run / "hydra_plugins/evil.py").write_text(CODE.format(marker=str(marker)))
    remember(run, signature=None)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    command = [
        sys.executable,
        "-P",
        "-m",
        "experiments.main",
        "run_dir=.",
        "workers=process",
        "workers.count=1",
    ]
    ended = subprocess.run(
        [*command, "stages=[search,prune,export,benchmark,report]", "latency.rounds=1"],
        cwd=run, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert not marker.exists()


@pytest.mark.parametrize("name", ["os.system", "evil.make", "evil:make", "hf-hub:e/n", "timm:hf-hub:e/n"])
def test_load_pruned_imports_nothing_that_a_file_names(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "evil.py").write_text(CODE.format(marker=str(marker)))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(AmcError):
        load_pruned(stranger(tmp_path, {"name": name}))
    assert not marker.exists()


@pytest.mark.parametrize("key", ["weights", "weights_backbone", "pretrained", "checkpoint_path", "cache_dir"])
def test_load_pruned_takes_weights_from_nowhere_else(key: str, tmp_path: Path) -> None:
    with pytest.raises(AmcError, match=key):
        load_pruned(stranger(tmp_path, {"name": "resnet20", "kwargs": {key: "/etc/passwd"}}))


def stranger(folder: Path, model: dict[str, object]) -> Path:
    """Write the strategy of another's run about a network of his."""
    about = {"num_classes": 4, "input_shape": [3, 8, 8], **model}
    strategy = Strategy((), 1.0, 1.0, 0, model=about)
    strategy.save(folder / "strategy.json")
    return folder


def test_a_command_elsewhere_does_not_see_modules_of_the_current_directory(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "hydra_plugins").mkdir()
    for name in ("ray.py", "coremltools.py", "hydra_plugins/evil.py"):
        (tmp_path / name).write_text(CODE.format(marker=str(marker)))
    outcome = amc(*FAKE, "model=resnet20", "workers=ray", "stages=[search]", "run_dir=run", cwd=tmp_path)
    assert outcome.status == 2
    assert not marker.exists()
