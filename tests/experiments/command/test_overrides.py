from __future__ import annotations

from pathlib import Path

import pytest

from experiments.command.overrides import with_new_keys, without_prefixes
from tests.experiments.helpers import amc, refused


def test_keys_of_an_own_function_need_no_plus() -> None:
    given = [
        "model.kwargs.width=2",
        "+model.kwargs.depth=3",
        "model.kwargs={a: 1}",
        "model.kwargsize=1",
        "-m",
    ]
    expected = ["++model.kwargs.width=2", "+model.kwargs.depth=3", "++model.kwargs={a: 1}", *given[3:]]
    free = ("model.kwargs", "data.kwargs")
    assert with_new_keys(given, free) == expected
    assert without_prefixes(expected, free) == given


@pytest.mark.parametrize("argument", ["model.kwargs.depth=3", "model.kwargs={depth: 3}"])
def test_an_argument_reaches_the_function(argument: str, tmp_path: Path) -> None:
    outcome = amc("data=fake", "model=resnet20", argument, "stages=[plan]", cwd=tmp_path)
    refused(outcome, "'depth': 3", "unexpected keyword argument")


def test_a_choice_without_a_function_takes_no_arguments(tmp_path: Path) -> None:
    outcome = amc("data=fake", "data.kwargs.root=x", cwd=tmp_path)
    refused(outcome, "the chosen data has no key 'data.kwargs': amc help data lists the keys\n")
