"""Which number format candidates run in."""

import pytest
import torch

from amc.errors import AmcError
from amc.scoring.precision import PRECISIONS, chosen_precision, computes_bf16, dtype_of, without_autocast

CPU = torch.device("cpu")


def test_precision_auto_follows_the_cpu(monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    assert not computes_bf16(torch.device("cpu"))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert computes_bf16(torch.device("cpu"))
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    assert not computes_bf16(torch.device("cpu"))


@pytest.mark.parametrize(("computes", "chosen"), [(True, "bfloat16"), (False, "float32")])
def test_auto_is_the_format_that_the_hardware_supports(monkeypatch, computes, chosen):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: computes, raising=False)
    assert chosen_precision("auto", CPU) == chosen


@pytest.mark.parametrize("name", PRECISIONS)
def test_a_named_precision_stays(name):
    assert chosen_precision(name, CPU) == name
    assert str(dtype_of(name)) == f"torch.{name}"


def test_autocast_is_off_but_where_a_network_switches_it_on():
    layer, given = torch.nn.Linear(4, 4), torch.ones(2, 4)
    with torch.autocast("cpu", torch.bfloat16), without_autocast():
        assert layer(given).dtype == torch.float32
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(given).dtype == torch.bfloat16


def test_an_unknown_precision_is_named():
    with pytest.raises(AmcError, match="'int3'; expected one of float32, bfloat16, auto"):
        chosen_precision("int3", CPU)
