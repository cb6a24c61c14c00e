import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amc.candidate.memo import Memo
from amc.result import Evaluation


def make(widths=(4, 5), loss=0.1, seconds=0.2):
    return Evaluation(
        widths=widths, top1=33.3, loss=loss, agreement=-1e-17, likeness=-0.5, macs=10**12 + 1, params=7,
        macs_ratio=1 / 3, params_ratio=0.7, seconds=seconds,
    )  # fmt: skip


def fill(path, *evaluations, fingerprint="a"):
    memo = Memo(path, fingerprint)
    for evaluation in evaluations:
        memo.put(evaluation)
    memo.close()


def read(path, fingerprint="a"):
    memo = Memo(path, fingerprint)
    memo.close()
    return memo


def test_memory_without_a_file():
    memo = Memo()
    assert memo.get((4, 5)) is None
    memo.put(make())
    assert memo.get([4, 5]) == make()
    assert len(memo) == 1


@settings(deadline=None, max_examples=40, database=None)
@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(0, 1e6))
def test_floats_survive_the_file_exactly(tmp_path_factory, loss, seconds):
    path = tmp_path_factory.mktemp("memo") / "evaluations.jsonl"
    fill(path, make(loss=loss, seconds=seconds))
    found = read(path).get((4, 5))
    assert found == make(loss=loss)
    assert found.seconds == seconds  # not part of equality


def test_lines_of_another_fingerprint_are_skipped_but_kept(tmp_path):
    path = tmp_path / "evaluations.jsonl"
    fill(path, make(loss=1.0), fingerprint="a")
    fill(path, make(loss=2.0), make((1, 1)), fingerprint="b")
    assert (len(read(path, "a")), len(read(path, "b")), len(read(path, "c"))) == (1, 2, 0)
    assert read(path, "a").get((4, 5)).loss == 1.0
    assert read(path, "b").get((4, 5)).loss == 2.0


def test_half_a_line_is_cut_off_and_appending_goes_on(tmp_path):
    path = tmp_path / "evaluations.jsonl"
    fill(path, make((1, 1)), make((2, 2)))
    whole = path.read_bytes()
    for length in (len(whole) - 1, len(whole) // 2 + 1):
        path.write_bytes(whole[:length])
        memo = read(path)
        assert memo.get((1, 1)) == make((1, 1))
        assert memo.get((2, 2)) is None
    fill(path, make((3, 3)))
    assert [json.loads(line)["widths"] for line in path.read_text().splitlines()] == [[1, 1], [3, 3]]
    assert len(read(path)) == 2


def test_a_put_is_on_disk_at_once(tmp_path):
    memo = Memo(tmp_path / "evaluations.jsonl", "a")
    memo.put(make())
    assert read(tmp_path / "evaluations.jsonl").get((4, 5)) == make()
    memo.close()


def test_not_a_number_is_refused_and_leaves_the_file_whole(tmp_path):
    path = tmp_path / "evaluations.jsonl"
    memo = Memo(path, "a")
    with pytest.raises(ValueError, match="JSON compliant"):
        memo.put(make(loss=float("nan")))
    memo.close()
    assert path.read_text() == ""


def test_a_file_of_an_earlier_release_is_read_without_stopped_evaluations(tmp_path):
    path = tmp_path / "evaluations.jsonl"
    fill(path, make((1, 1)), make((2, 2)))
    one, other = (json.loads(line) for line in path.read_text().splitlines())
    lines = [
        {**one, "stopped_after": None, "against": None},
        {**other, "stopped_after": 20, "against": [1, 1]},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read(path).get((1, 1)) == make((1, 1))
    assert read(path).get((2, 2)) is None
