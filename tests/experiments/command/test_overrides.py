from __future__ import annotations

from pathlib import Path

import pytest

from experiments.command.overrides import options_first, with_new_keys, without_prefixes
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


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("seed=1 -m name=a", "-m seed=1 name=a"),
        ("seed=1 --cfg job name=a -p agent", "--cfg job -p agent seed=1 name=a"),
        ("seed=1 --cfg=job name=a", "--cfg=job seed=1 name=a"),
        ("--info seed=1", "--info all seed=1"),
        ("seed=1 -i", "-i all seed=1"),
        ("seed=1 --info defaults name=-1 ~tracker", "--info defaults seed=1 name=-1 ~tracker"),
    ],
)
def test_options_may_stand_between_settings(given: str, expected: str) -> None:
    assert options_first(given.split()) == expected.split()


def test_options_between_settings_are_understood(tmp_path: Path) -> None:
    told = amc("seed=3", "--cfg", "job", "name=a", "-p", "seed", cwd=tmp_path)
    assert (told.status, told.out, told.err) == (0, "3\n", "")
    refused(
        amc("-m", "seed=range(0,2)", "--cfg", "job", cwd=tmp_path), "--cfg shows one job, but -m is given"
    )
    refused(amc("seed=0,1", "-i", "-m", cwd=tmp_path), "-i shows one job, but -m is given")
    assert list(tmp_path.iterdir()) == []


def test_a_choice_without_a_function_takes_no_arguments(tmp_path: Path) -> None:
    outcome = amc("data=fake", "data.kwargs.root=x", cwd=tmp_path)
    refused(outcome, "the chosen data has no key 'data.kwargs': amc help data lists the keys\n")
