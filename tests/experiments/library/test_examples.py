"""The public page, the notebook and the examples."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import amc
from amc.errors import AmcError
from amc.models import plain20, resnet20
from amc.models.state_files import save_safetensors
from experiments import examples


def test_the_public_page_lists_and_documents_every_name() -> None:
    tree = ast.parse(Path(amc.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(amc.__all__) == typed == set(amc._HOME)
    assert set(dir(amc)) == set(amc.__all__)
    assert all(getattr(amc, name).__doc__ for name in amc.__all__)
    assert amc.__version__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        amc.nothing  # noqa: B018


@pytest.mark.slow
def test_the_notebook_runs_from_its_first_to_its_last_cell(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MPLBACKEND", "Agg")
    notebook = json.loads((Path(examples.__file__).parent / "own_network.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] for cell in notebook["cells"] if cell["cell_type"] == "code")
    names: dict[str, Any] = {"__name__": "notebook"}
    for cell in cells:
        exec(compile(cell, "cell", "exec"), names)
    assert names["result"].strategy.macs_ratio <= 0.5
    assert names["accuracy"](names["pruned"]) > 80
    assert names["exported"].path.exists()
    assert "as fast in onnxruntime" in capsys.readouterr().out


def test_the_example_with_an_agent_of_ones_own_runs() -> None:
    from experiments.examples import own_agent

    result = own_agent.main()
    assert result.strategy.macs_ratio <= 0.5
    assert result.model(own_agent.make_images(2)[0]).shape == (2, own_agent.CLASSES)


def test_the_example_with_several_teachers_gives_their_mean(tmp_path, monkeypatch) -> None:
    from experiments.examples.ensemble_teacher import teach

    torch.manual_seed(0)
    networks = {"resnet20": resnet20().eval(), "plain20": plain20().eval()}
    for name, each in networks.items():
        save_safetensors(each.state_dict(), tmp_path / f"{name}.safetensors")
    given = torch.randn(4, 3, 32, 32)
    monkeypatch.setenv("TEACHERS", ",".join(f"{name}={tmp_path}/{name}.safetensors" for name in networks))
    with torch.no_grad():
        found = teach(given)
        wanted = torch.stack([each(given) for each in networks.values()]).mean(0)
    torch.testing.assert_close(found, wanted, atol=0.02 * float(wanted.abs().max()), rtol=0)  # bfloat16
    monkeypatch.setenv("TEACHERS", "resnet20")
    with pytest.raises(AmcError, match="TEACHERS=resnet20: expected NAME=CHECKPOINT"):
        teach(given)
