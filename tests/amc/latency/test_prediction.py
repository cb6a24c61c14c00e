import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from amc.budget.allocation import even_errors, uniform_widths
from amc.budget.budget import make_budget
from amc.budget.widths import width_space
from amc.cost.closed_form import layer_widths, macs_cost
from amc.cutting.slicing import SlicePlan, slice_model
from amc.errors import AmcError, FileError
from amc.graph.trace import trace
from amc.latency.prediction import build
from amc.latency.prediction.build import CLOSE, checked_widths, kept
from amc.latency.prediction.cheap_widths import (
    WIDTHS,
    WidthCosts,
    extra_of_rounding,
    typical_layer,
    width_costs,
)
from amc.latency.prediction.layer_kinds import LayerKind, layer_kinds, spread
from amc.latency.prediction.model import LatencyModel, LayerGrid, accuracy, layer_grids
from amc.latency.prediction.profile import (
    NetworkTimes,
    measure_layers,
    measure_networks,
    missing_points,
    random_networks,
    target_of,
)
from amc.latency.prediction.settings import ProfileSettings
from amc.latency.prediction.table import LatencyTable, Surface, Target
from tests.fakes import Spinning
from tests.networks import SHAPE, Residual, Separable, Transposed

TARGET = Target("A CPU @ 2 GHz", "torch", "2.0", "float32", 1, 1)


@pytest.fixture(scope="module", params=[Residual, Separable], ids=lambda network: network.__name__)
def network(request):
    torch.manual_seed(0)
    model = request.param().eval()
    graph = trace(model, torch.zeros(1, *SHAPE))
    return model, graph, width_space(graph.group_names, graph.dense_widths, round_to=2)


one_network = pytest.mark.parametrize("network", [Separable], indirect=True, ids=["Separable"])
"""For tests that time many networks: all kinds of layers are in this one."""


def made_up(grids, seed=0):
    """Latencies that no formula gives: random, some of them falling with the width."""
    generator = np.random.default_rng(seed)
    return [{point: float(generator.uniform(0.1, 2.0)) for point in grid.points} for grid in grids]


def model_of(network, points=3, seed=0, factors=None):
    model, graph, space = network
    grids = layer_grids(graph, layer_kinds(graph, model), space, points)
    return LatencyModel(graph, TARGET, grids, made_up(grids, seed), factors)


def test_spread_keeps_both_ends_and_at_most_the_given_count():
    assert spread(range(10, 101, 10), 4) == (10, 40, 70, 100)
    assert spread([8, 64], 4) == (8, 64)
    assert spread([5], 3) == (5,)


def test_a_surface_meets_its_points_and_is_bilinear_between():
    surface = Surface({(2, 4): 1.0, (2, 8): 2.0, (6, 4): 3.0, (6, 8): 8.0})
    assert [surface(2, 4), surface(2, 8), surface(6, 4), surface(6, 8)] == [1.0, 2.0, 3.0, 8.0]
    assert surface(4, 4) == 2.0
    assert surface(4, 6) == pytest.approx((1 + 2 + 3 + 8) / 4)


def test_outside_its_points_a_surface_has_the_nearest_ones():
    surface = Surface({(2, 4): 1.0, (2, 8): 2.0, (6, 4): 3.0, (6, 8): 8.0})
    assert [surface(0, 6), surface(4, 0), surface(0, 0), surface(8, 4)] == [1.5, 2.0, 1.0, 3.0]


def test_a_surface_is_raised_where_a_wider_layer_is_faster():
    surface = Surface({(1, 8): 3.0, (1, 16): 1.0, (1, 24): 4.0})
    assert [surface(1, width) for width in (8, 12, 16, 20, 24)] == [3.0, 3.0, 3.0, 3.5, 4.0]


def test_a_depthwise_layer_has_one_width():
    surface = Surface({(8, 8): 1.0, (16, 16): 3.0})
    assert surface(12, 12) == 2.0


def test_a_surface_needs_a_full_grid():
    with pytest.raises(FileError, match="lacks the widths"):
        Surface({(2, 4): 1.0, (2, 8): 2.0, (6, 4): 3.0})


def test_layer_widths_are_those_of_the_sliced_network(network):
    model, graph, space = network
    channels = layer_widths(graph)
    for widths in (graph.dense_widths, space.minimum, *random_networks(space, macs_cost(graph), 5, 0)):
        sliced = dict(slice_model(model, SlicePlan(graph, model).cut(widths)).named_modules())
        expected = [
            (
                getattr(m, "in_channels", None) or m.in_features,
                getattr(m, "out_channels", None) or m.out_features,
            )
            for m in (sliced[layer.name] for layer in graph.layers)
        ]
        assert channels(widths).T.tolist() == [list(pair) for pair in expected]


def test_single_layers_compute_as_the_layers_of_the_network_do(network):
    model, graph, _ = network
    modules = dict(model.named_modules())
    for layer, kind in zip(graph.layers, layer_kinds(graph, model), strict=True):
        unit = kind.network(layer.in_channels, layer.out_channels)
        output = unit(torch.zeros(1, *kind.input_shape(layer.in_channels)))
        assert output.shape[1] == layer.out_channels
        assert output[0, 0].numel() == layer.positions // layer.calls
        own = [m for m in unit.modules() if isinstance(m, type(modules[layer.name]))]
        assert own[0].weight.shape == modules[layer.name].weight.shape
        assert LayerKind.from_json(json.loads(json.dumps(kind.to_json()))) == kind


def test_transposed_layers_compute_alone_as_in_the_network(example):
    model = Transposed()
    graph = trace(model, example)
    kinds = dict(zip((layer.name for layer in graph.layers), layer_kinds(graph, model), strict=True))
    assert (kinds["up.0"].kind, kinds["each"].kind) == ("transposed", "depthwise")
    assert kinds["up.0"].network(8, 6)(torch.zeros(1, 8, 6, 6)).shape == (1, 6, 12, 12)
    assert kinds["each"].network(12, 12)(torch.zeros(1, 12, 12, 12)).shape == (1, 12, 12, 12)


def test_grids_reach_from_the_smallest_to_the_dense_network(network):
    model, graph, space = network
    grids = layer_grids(graph, layer_kinds(graph, model), space, 3)
    channels = layer_widths(graph)
    for index, grid in enumerate(grids):
        for axis, values in enumerate((grid.inputs, grid.outputs)):
            assert values[0] == channels(space.minimum)[axis, index]
            assert values[-1] == channels(space.dense)[axis, index]
            assert len(values) <= 3


def test_a_prediction_is_the_sum_of_its_layers(network):
    found = model_of(network)
    _, graph, space = network
    inputs, outputs = layer_widths(graph)(space.dense)
    layers = zip(found.grids, found.points, inputs, outputs, strict=True)
    assert found(space.dense) == pytest.approx(sum(Surface(points)(i, o) for _, points, i, o in layers))


def test_fitted_factors_are_found_again(network):
    _, graph, space = network
    plain = model_of(network)
    truth = {name: 0.5 + 0.25 * i for i, name in enumerate(plain.names)}
    real = LatencyModel(graph, TARGET, plain.grids, plain.points, truth)
    networks = random_networks(space, macs_cost(graph), 40, 1)
    fitted = plain.fitted(networks, [real(widths) for widths in networks])
    others = random_networks(space, macs_cost(graph), 20, 2)
    found = accuracy([fitted(w) for w in others], [real(w) for w in others])
    assert found.worst_error < 1e-6
    unfitted = accuracy([plain(w) for w in others], [real(w) for w in others])
    assert unfitted.worst_error > 0.05
    assert found.networks == 20


def test_a_model_survives_json(network):
    _, graph, space = network
    plain = model_of(network, factors={"spatial": 2.0, "linear": 0.5, "constant": 0.1})
    again = LatencyModel.from_json(
        json.loads(json.dumps(plain.to_json())), graph, layer_kinds(graph, network[0]), "file"
    )
    for widths in random_networks(space, macs_cost(graph), 5, 0):
        assert again(widths) == plain(widths)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_version": 2}, "FILE has _version 2; this release reads 1$"),
        ({"layers": []}, "FILE describes 0 layers, the network has .* another network or"),
        ({"target": {}}, "FILE is no latency model: .*device.*; profile again$"),
    ],
)
def test_a_damaged_model_is_refused(network, change, message):
    data = {**model_of(network).to_json(), **change}
    with pytest.raises(FileError, match=f"^{message}"):
        LatencyModel.from_json(data, network[1], layer_kinds(network[1], network[0]), "FILE")


@pytest.mark.parametrize("size", [(20, 16), (16, 20)])
def test_a_model_of_another_image_size_is_refused(network, size):
    model, _, _ = network
    other = trace(model, torch.zeros(1, SHAPE[0], *size))
    data = json.loads(json.dumps(model_of(network).to_json()))
    with pytest.raises(FileError, match=r"^FILE describes .*data\.image_size; run stages=\[profile\] again$"):
        LatencyModel.from_json(data, other, layer_kinds(other, model), "FILE")


def test_a_model_of_a_wider_network_is_refused(network):
    model, graph, _ = network
    data = json.loads(json.dumps(model_of(network).to_json()))
    data["layers"][0]["outputs"][-1] += 1
    with pytest.raises(FileError, match=r"^FILE describes .* channels, .* of the network is"):
        LatencyModel.from_json(data, graph, layer_kinds(graph, model), "FILE")


def test_narrower_networks_than_were_measured_are_told(network):
    _, graph, space = network
    found = model_of(network)
    assert found.lacking(space) is None
    finer = width_space(graph.group_names, graph.dense_widths, round_to=1, min_preserve_ratio=0.05)
    first, measured = graph.layers[0].name, found.grids[0].outputs[0]
    least = layer_widths(graph)(finer.minimum)[1, 0]
    assert found.lacking(finer) == (
        f"was profiled from {measured} output channels of {first} on, the settings allow {least}"
    )


def test_a_group_that_was_whole_when_it_was_measured_is_told(network):
    _, graph, space = network
    whole = replace(space, choices=(*space.choices[:-1], space.choices[-1][-1:]))
    assert "was profiled from" in model_of((network[0], graph, whole)).lacking(space)


def test_no_prediction_falls_when_a_width_grows_also_below_the_measured_ones(network):
    _, graph, _ = network
    found = model_of(network, seed=3, factors={"spatial": 1.5, "depthwise": 1.0, "linear": 0.7})
    generator = np.random.default_rng(0)
    for _ in range(200):
        widths = [int(generator.integers(1, dense)) for dense in graph.dense_widths]
        group = int(generator.integers(len(widths)))
        wider = [*widths[:group], widths[group] + 1, *widths[group + 1 :]]
        assert found(wider) >= found(widths) * (1 - 1e-12)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_latency_budget_holds_for_any_requests(network, data):
    _, _, space = network
    seed = data.draw(st.integers(0, 5))
    cost = model_of(
        network, points=4, seed=seed, factors={"spatial": 1.5, "depthwise": 1.0, "pointwise": 0.7}
    )
    reachable = cost(space.minimum) / cost(space.dense)
    budget = make_budget("latency", data.draw(st.floats(min(reachable + 1e-9, 1), 1)), cost, space.dense)
    widths = []
    for choices in space.choices:
        widths.append(budget.cut(space, widths, data.draw(st.sampled_from(choices))))
    assert cost(widths) <= budget.leading.largest
    scaled = budget.scale(space, [data.draw(st.floats(0, 1)) for _ in space.names])
    assert max(cost(scaled), cost(uniform_widths(space, budget))) <= budget.leading.largest


@one_network
def test_only_layers_that_the_table_lacks_are_measured(network, tmp_path):
    model, graph, space = network
    backend = Spinning()
    table = LatencyTable(target_of(backend, 1, 1))
    grids = layer_grids(graph, layer_kinds(graph, model), space, 2)
    path = tmp_path / "tables" / table.target.file_name
    missing = sum(len(points) for _, points in missing_points(table, grids, 1))
    seen = []

    class InterruptionError(Exception):
        pass

    def interrupt(done, what):
        seen.append(done)
        if len(seen) == 2:
            raise InterruptionError

    def measure(progress):
        measure_layers(table, grids, backend, rounds=1, save=lambda t: t.save(path), progress=progress)

    with pytest.raises(InterruptionError):
        measure(interrupt)
    kept = LatencyTable.load(path)
    assert sum(map(len, kept.layers.values())) == sum(seen)
    table = kept
    measure(lambda done, what: seen.append(done))
    assert sum(seen) == missing
    again = LatencyTable.load(path)
    assert missing_points(again, grids, 1) == []
    assert all(again.layers[kind].items() >= points.items() for kind, points in kept.layers.items())
    assert all(ms > 0 for points in again.layers.values() for ms in points.values())


def test_points_of_fewer_rounds_are_measured_again(tmp_path):
    kind = LayerKind("conv", (3, 3), (1, 1), (1, 1), (1, 1), 1, (8, 8), norm=True)
    grid = [LayerGrid(kind, (4,), (8, 16))]
    table = LatencyTable(TARGET)
    table.add(kind, {(4, 8): 1.0}, 1)
    table.add(kind, {(4, 16): 2.0}, 30)
    table.save(tmp_path / "table.json")
    again = LatencyTable.load(tmp_path / "table.json")
    assert again == table
    assert missing_points(again, grid, 1) == []
    assert missing_points(again, grid, 30) == [(kind, [(4, 8)])]
    data = json.loads(json.dumps(table.to_json()))
    del data["layers"][0]["rounds"]
    earlier = LatencyTable.from_json(data, "a table of an earlier version")
    assert missing_points(earlier, grid, ProfileSettings.rounds) == []
    assert missing_points(earlier, grid, ProfileSettings.rounds + 1) == [(kind, [(4, 8), (4, 16)])]


def test_a_damaged_table_is_refused(tmp_path):
    path = tmp_path / "table.json"
    with pytest.raises(FileError, match="cannot read"):
        LatencyTable.load(path)
    path.write_text("{")
    with pytest.raises(FileError, match="is damaged"):
        LatencyTable.load(path)
    path.write_text("{}")
    with pytest.raises(FileError, match="is no latency table"):
        LatencyTable.load(path)
    path.write_text(json.dumps({**LatencyTable(TARGET).to_json(), "_version": 2}))
    with pytest.raises(FileError) as error:
        LatencyTable.load(path)
    assert str(error.value) == f"{path} has _version 2; this release reads 1"


def test_files_of_targets_differ_and_are_plain():
    names = {
        TARGET.file_name,
        replace(TARGET, threads=2).file_name,
        replace(TARGET, version="2.1").file_name,
        replace(TARGET, batch=8).file_name,
        replace(TARGET, setup="cores f0, litert").file_name,
        replace(TARGET, setup="cores 0f, litert").file_name,
    }
    assert len(names) == 6
    assert all(c.isalnum() or c in "._-" for c in "".join(names))


@one_network
def test_smaller_networks_are_measured_as_faster(network):
    model, graph, space = network
    found = measure_networks(
        model,
        graph,
        [space.minimum, space.dense],
        Spinning(),
        batch=16,
        threads=1,
        rounds=7,
        progress=lambda done, what: None,
    )
    assert found.dense_ms > 0
    assert found.ratios[0] < found.ratios[1]
    assert found.ratios[1] == pytest.approx(1.0, rel=0.5)
    assert (found.device, found.version) == (target_of(Spinning(), 1, 16).device, Spinning().version())


def test_random_networks_are_allowed_and_of_all_sizes(network):
    _, graph, space = network
    cost = macs_cost(graph)
    found = random_networks(space, cost, 40, 0)
    assert found == random_networks(space, cost, 40, 0) != random_networks(space, cost, 40, 1)
    assert all(w in choices for widths in found for w, choices in zip(widths, space.choices, strict=True))
    shares = [cost(widths) / cost(space.dense) for widths in found]
    assert min(shares) < 0.4
    assert max(shares) > 0.6


def test_rounding_up_is_free_within_a_block_of_channels():
    blocks = {width: float(-(-width // 8)) for width in WIDTHS}
    found = WidthCosts("layer", tuple(blocks.values()), extra_of_rounding(blocks))
    assert [found.extra[multiple] for multiple in (1, 2, 4, 8)] == [0.0, 0.0, 0.0, 0.0]
    assert found.extra[16] > 0.05
    assert found.cheap_multiple == 8


def test_without_blocks_rounding_up_costs_the_added_channels():
    extra = extra_of_rounding({width: float(width) for width in WIDTHS})
    assert extra[2] == pytest.approx(sum((w + w % 2) / w - 1 for w in WIDTHS) / len(WIDTHS))
    assert list(extra.values()) == sorted(extra.values())
    assert WidthCosts("layer", (), extra).cheap_multiple == 2


@one_network
def test_widths_of_the_heaviest_layer_are_timed(network):
    model, graph, _ = network
    kinds = layer_kinds(graph, model)
    kind = typical_layer(graph, kinds)
    shares = {k: sum(la.macs for la, own in zip(graph.layers, kinds, strict=True) if own == k) for k in kinds}
    assert all(shares[kind] >= share for k, share in shares.items() if k.kind == "conv")
    found = width_costs(kind, Spinning(), batch=1, threads=1, rounds=1)
    assert len(found.milliseconds) == len(WIDTHS)
    assert min(found.milliseconds) > 0
    assert found.extra == extra_of_rounding(dict(zip(WIDTHS, found.milliseconds, strict=True)))
    assert found.extra[1] == 0.0


def test_transposed_convolutions_alone_have_no_typical_layer():
    model = nn.Sequential(nn.ConvTranspose2d(3, 8, 2, 2), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2, 2)).eval()
    graph = trace(model, torch.zeros(1, 3, 4, 4))
    assert typical_layer(graph, layer_kinds(graph, model)) is None


def test_many_networks_at_once_are_predicted_as_each_alone(network):
    latency = model_of(network, factors={"constant": 0.3, "written": 0.7})
    space = network[2]
    generator = np.random.default_rng(0)
    widths = np.array([[generator.choice(own) for own in space.choices] for _ in range(5)])
    steps = np.array(space.minimum) - widths
    each = [latency(row) for row in widths.tolist()]
    assert latency.many(widths) == pytest.approx(each, rel=1e-9)
    assert all(many >= one for many, one in zip(latency.many(widths), each, strict=True))
    found = latency.with_one_changed(widths, steps)
    for row, group in np.ndindex(*widths.shape):
        moved = widths[row].copy()
        moved[group] += steps[row, group]
        assert found[row, group] == pytest.approx(latency(moved.tolist()), rel=1e-9)
        assert found[row, group] >= latency(moved.tolist())


def checks_of(network, monkeypatch, measured_as, *, ratio=0.6, repairs=5):
    """Return the checks of the dense network, whose measured latency is a function of the predicted one."""
    model, graph, space = network
    cost = macs_cost(graph)
    budget = make_budget("latency", ratio, cost, space.dense)

    def measure(*arguments, **_):
        return NetworkTimes(1.0, [measured_as(budget.leading.share(arguments[2][0]))], "A CPU", "1")

    monkeypatch.setattr(build, "measure_networks", measure)
    own = ProfileSettings(repairs=repairs)
    return checked_widths(
        model, graph, space, budget, space.dense, Spinning(), own, lambda: even_errors(space)
    )


def test_repairs_that_are_left_look_for_a_larger_network(network, monkeypatch):
    # a smaller network is faster than predicted: the first repair overshoots
    found = [*checks_of(network, monkeypatch, lambda share: share if share > 0.9 else share**1.5 * 0.9)]
    first = next(place for place, check in enumerate(found) if check.holds)
    best = kept(found)
    assert len(found) <= 6
    assert found[first].measured < 0.5
    assert best.measured > found[first].measured
    assert best.measured == max(check.measured for check in found if check.measured <= 0.6)
    assert len({check.widths for check in found}) == len(found)


def test_a_network_that_is_close_to_the_budget_ends_the_repairs(network, monkeypatch):
    found = [*checks_of(network, monkeypatch, lambda share: share, repairs=20)]
    near = [check.measured >= CLOSE * 0.6 and check.holds for check in found]
    assert not any(near[:-1])
    assert len(found) < 21


def test_a_budget_that_is_missed_tells_what_was_measured(network, monkeypatch):
    with pytest.raises(
        AmcError, match=r"takes 0\.9500, then 0\.9500 of the dense latency after 1 repairs, over"
    ):
        [*checks_of(network, monkeypatch, lambda share: 0.95, repairs=1)]


def test_without_a_miss_nothing_is_repaired(network, monkeypatch):
    (only,) = checks_of(network, monkeypatch, lambda share: 0.3)
    assert kept([only]) is only
