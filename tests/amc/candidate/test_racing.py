"""Racing: what is stopped is worse, what is kept is judged in full, and a replay gives the same."""

import math

import numpy as np
import pytest
import torch

from amc.candidate.evaluator import Compressor
from amc.candidate.memo import Memo
from amc.candidate.racing import Racer, clearly_worse
from amc.candidate.settings import CompressorSettings
from amc.errors import AmcError
from amc.graph.trace import trace
from tests.networks import SHAPE


def compressor_of(trained, data, **options):
    graph = trace(trained, torch.zeros(1, *SHAPE))
    settings = CompressorSettings(refit=False, order="l1", racing_risk=0.05)
    return Compressor(trained, graph, data.calibration, data.search_val, settings, **options)


def widths_at(compressor, share):
    return tuple(max(1, round(share * width)) for width in compressor.graph.dense_widths)


def test_the_decision_is_a_sign_test():
    def differences(wins, losses):
        return torch.tensor([1.0] * wins + [-1.0] * losses + [0.0] * 50)

    # 0 of 8: 8 log 2 = 5.545; 2 of 20: 20 (log 2 + .1 log .1 + .9 log .9) = 7.36.
    assert clearly_worse(differences(0, 8), 5.5)
    assert not clearly_worse(differences(0, 8), 5.6)
    assert clearly_worse(differences(2, 18), 7.3)
    assert not clearly_worse(differences(2, 18), 7.4)
    assert not clearly_worse(differences(18, 2), 0.0)
    assert not clearly_worse(differences(0, 0), 0.0)


def test_a_candidate_as_good_as_the_incumbent_is_rarely_stopped():
    """Populations with as many wins as losses, drawn without replacement: the worst case of the bound."""
    generator = np.random.default_rng(0)
    risk, stages, stopped = 0.1, (100, 200, 400), 0
    for _ in range(400):
        population = generator.permutation(np.repeat([1.0, -1.0, 0.0], [150, 150, 700]))
        drawn = torch.from_numpy(population)
        stopped += any(clearly_worse(drawn[:n], math.log(len(stages) / risk)) for n in stages)
    assert stopped <= 0.1 * 400


def test_a_clearly_worse_candidate_is_stopped_and_cannot_win(trained, data):
    compressor = compressor_of(trained, data)
    racer = Racer(compressor, 0.05)
    best = racer.evaluate(compressor.graph.dense_widths)
    worse = racer.evaluate(widths_at(compressor, 0.2))
    assert best.stopped_after is None
    assert worse.stopped_after is not None
    assert worse.stopped_after < len(data.search_val)
    assert worse.against == best.widths
    assert worse.top1 < best.top1
    assert worse.macs == compressor.macs(worse.widths)
    assert worse.macs_ratio == pytest.approx(worse.macs / compressor.macs(compressor.graph.dense_widths))


def test_a_candidate_that_is_not_stopped_gets_its_full_result(trained, data):
    compressor = compressor_of(trained, data)
    racer = Racer(compressor, 0.05)
    racer.evaluate(widths_at(compressor, 0.2))
    better = racer.evaluate(widths_at(compressor, 0.9))
    plain = compressor_of(trained, data).evaluate(better.widths)
    assert better.stopped_after is None
    assert better.top1 == plain.top1
    assert better.loss == pytest.approx(plain.loss, rel=1e-5)
    assert better.agreement == pytest.approx(plain.agreement, rel=1e-4, abs=1e-7)


def test_a_lost_race_is_remembered_only_against_the_same_incumbent(trained, data):
    compressor = compressor_of(trained, data)
    low, high = widths_at(compressor, 0.2), compressor.graph.dense_widths
    alone = Racer(compressor, 0.05)
    alone.evaluate(high)
    assert alone.evaluate(low).stopped_after is not None
    assert Racer(compressor, 0.05).evaluate(low).stopped_after is None


def test_an_interrupted_race_goes_on_to_the_same_results(trained, data, tmp_path):
    def run(count, path):
        compressor = compressor_of(trained, data, memo=Memo(path, "f"))
        racer = Racer(compressor, 0.05)
        shares = (0.6, 1.0, 0.2, 0.5, 0.2, 0.9)[:count]
        found = [racer.evaluate(widths_at(compressor, share)) for share in shares]
        compressor.close()
        return found

    whole = run(6, tmp_path / "whole.jsonl")
    run(3, tmp_path / "broken.jsonl")
    assert run(6, tmp_path / "broken.jsonl") == whole
    assert any(evaluation.stopped_after for evaluation in whole)


@pytest.mark.parametrize("risk", [-0.1, 0.5, 2.0])
def test_an_impossible_risk_is_refused(risk):
    with pytest.raises(AmcError, match="racing_risk"):
        CompressorSettings(racing_risk=risk)
