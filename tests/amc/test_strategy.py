import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amc import GroupWidth, Strategy
from amc.errors import FileError

ratios = st.floats(0, 1, exclude_min=True)
widths = st.tuples(st.integers(1, 2048), st.integers(1, 2048)).map(sorted)
groups = st.lists(st.builds(lambda name, w: GroupWidth(name, w[1], w[0]), st.text(), widths), max_size=5)
facts = st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | ratios | st.text(), max_size=3)
strategies = st.builds(Strategy, groups.map(tuple), ratios, ratios, st.integers(0), facts, facts, facts)


@settings(deadline=None, max_examples=30, database=None)
@given(strategies)
def test_json_round_trip(strategy):
    assert Strategy.from_json(json.loads(json.dumps(strategy.to_json()))) == strategy


def make(*groups):
    return Strategy(groups, macs_ratio=0.5, params_ratio=0.25, seed=3, model={"name": "resnet20"})


def test_file_round_trip(tmp_path):
    strategy = make(GroupWidth("conv1", 16, 8), GroupWidth("conv2", 10, 10))
    strategy.save(tmp_path / "strategy.json")
    assert Strategy.load(tmp_path / "strategy.json") == strategy
    assert strategy.widths == (8, 10)
    assert strategy.groups[0].preserve_ratio == 0.5


@pytest.mark.parametrize("kept", [0, -1, 17])
def test_impossible_widths_are_refused(kept):
    with pytest.raises(FileError, match=f"keeps {kept} of 16 channels in group 'conv1'; expected 1 to 16"):
        make(GroupWidth("conv1", 16, kept))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_version": 2}, "_version 2; this release reads 1"),
        ({"groups": None}, "malformed"),
        ({"groups": [{"name": "conv1"}]}, "malformed.*dense"),
        ({"seed": None}, "malformed"),
        ({"macs_ratio": "half"}, "malformed"),
    ],
)
def test_malformed_json_is_refused_in_one_line(change, message):
    with pytest.raises(FileError, match=message) as caught:
        Strategy.from_json({**make(GroupWidth("conv1", 16, 8)).to_json(), **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read .*No such file"),
        ('{"_ver', "is not JSON .*truncated"),
        ("[]", "expected an object"),
    ],
)
def test_unreadable_file_is_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "strategy.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(FileError, match=message) as caught:
        Strategy.load(path)
    assert "\n" not in str(caught.value)


def test_a_file_of_another_version_is_named(tmp_path):
    path = tmp_path / "old.json"
    path.write_text(json.dumps({**make(GroupWidth("conv1", 16, 8)).to_json(), "_version": 3}))
    with pytest.raises(FileError, match=r"old\.json has _version 3; this release reads 1$"):
        Strategy.load(path)


def test_groups_that_are_not_named_stay_whole():
    strategy = make(GroupWidth("b", 10, 4))
    assert strategy.widths_for(["a", "b", "c"], [8, 10, 12]) == (8, 4, 12)


@pytest.mark.parametrize(
    ("names", "dense", "message"),
    [(["a"], [16], "'conv1', which the network does not have"), (["conv1"], [32], "16 channels.*has 32")],
)
def test_strategy_of_another_network_is_refused(names, dense, message):
    with pytest.raises(FileError, match=message):
        make(GroupWidth("conv1", 16, 8)).widths_for(names, dense)
