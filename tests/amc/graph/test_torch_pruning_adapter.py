"""The private names of torch-pruning that the adapter uses."""

from importlib import import_module, metadata

from torch import nn

from amc.graph import torch_pruning_adapter
from amc.graph.walls import Verdict
from tests.networks import Chain


def missing(owner, *names):
    return [name for name in names if not hasattr(owner, name)]


def test_torch_pruning_has_the_private_names(example):
    graph_class = torch_pruning_adapter.import_torch_pruning().DependencyGraph
    gone = missing(import_module("torch_pruning._helpers"), "_HybridIndex")
    gone += missing(graph_class, "_build_dependency")
    gone += missing(graph_class().build_dependency(Chain(), example), "_module2name", "_param_to_name")
    assert not gone, (
        f"torch-pruning {metadata.version('torch-pruning')} lacks {', '.join(gone)}: adapt "
        f"amc/graph/torch_pruning_adapter.py, which was checked with {torch_pruning_adapter.CHECKED_VERSION}"
    )


def test_the_hook_is_called_for_every_operation_between_the_layers(example):
    judged = []

    def judge(node):
        judged.append(node.module)
        return Verdict(wall="closed")

    model = Chain()
    graph = torch_pruning_adapter.build_graph(model, example, judge, lambda output: [output * 1])
    assert judged
    assert not any(isinstance(module, nn.Conv2d | nn.Linear) for module in judged)
    assert set(graph.walls) == set(judged)
    assert set(graph.walls.values()) == {"closed"}


def test_names_and_pairs(example):
    model = Chain()
    graph = torch_pruning_adapter.build_graph(model, example, lambda node: Verdict(), lambda out: [out * 1])
    names = dict(model.named_modules())
    for module in graph.module2node:
        name = torch_pruning_adapter.name_of(graph, module)
        assert names.get(name) is module or not isinstance(module, nn.Conv2d | nn.Linear)
    pair = torch_pruning_adapter.index_pair(3, 1)
    assert (pair.idx, pair.root_idx) == (3, 1)
    assert pair == torch_pruning_adapter.index_pair(3, 1)
