"""Every agent's episodes are those of the golden traces: a change that moves results is seen here."""

import pytest

from tests import golden


@pytest.mark.parametrize("name", golden.TRACES)
def test_a_search_runs_as_it_did(name):
    assert golden.trace(name) == golden.read(name), "rewrite on purpose: python -m tests.golden --write"


def test_every_trace_has_its_search_and_all_are_small():
    files = list(golden.FOLDER.glob("*.jsonl"))
    assert {path.stem for path in files} == set(golden.TRACES)
    assert sum(path.stat().st_size for path in files) < 10_000
