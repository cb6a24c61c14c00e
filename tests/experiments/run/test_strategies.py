"""Strategies of other networks, and of runs that left groups whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from amc.errors import FileError
from amc.strategy import GroupWidth, Strategy
from experiments.run.folder import RunFolder
from experiments.run.problem.problem import Problem
from experiments.run.run import Run
from tests.experiments.helpers import FAKE, composed

RESNET20 = [(f"layer{stage}.{block}.conv1", 8 * 2**stage) for stage in (1, 2, 3) for block in range(3)]
"""Groups within the blocks, and their channels; ResNet-32 has these and six more."""


def test_a_strategy_that_lacks_groups_is_taken_only_for_its_own_network(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = composed(*FAKE, "model=resnet32", "compressor.prune_coupled=false")
    folder = RunFolder.made(tmp_path)
    run = Run(config, folder, Problem(config, folder))
    groups = tuple(GroupWidth(name, dense, dense // 2) for name, dense in RESNET20)
    other = Strategy(groups, 0.5, 0.5, seed=0, model={"name": "resnet20"})
    for use in (run.widths_of, run.counted):
        with pytest.raises(FileError, match=r"strategy of resnet20 lacks 6 of the 15 .*another network"):
            use(other)
    assert not caplog.messages
    own = Strategy(groups, 0.5, 0.5, seed=0, model={"name": "resnet32"})
    assert sum(run.widths_of(own)) == sum(run.problem.graph.dense_widths) - 3 * (8 + 16 + 32)
    assert caplog.messages == ["the strategy lacks 6 of the 15 channel groups, which keep all channels"]
