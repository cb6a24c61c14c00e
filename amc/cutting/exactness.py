"""The proof, made before a search, that a network can be pruned: four ways to cut it must compute the same.

Zeroed (dense shapes, removed channels silent and unread), sliced, cut by torch-pruning, and rebuilt from what
is stored on disk. The proof is of the structure: it runs on a copy with random weights, so that no layer is
silent because it was initialised to zero or scaled to a millionth.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from amc.cutting.slicing import Cut, SlicePlan, shaped, slice_model
from amc.cutting.surgery import surgery
from amc.cutting.zeroing import with_drawn_buffers, zero_model
from amc.errors import NotPrunableError, out_of_memory
from amc.graph.groups import Graph
from amc.models.checkpoint import load_into, load_state_dict, save_safetensors
from amc.scoring.flatten import as_matrix
from amc.strategy import GroupWidth, Strategy

IMAGES = 4
"""Random images that the networks are compared on."""


class InexactError(NotPrunableError):
    """A network cannot be pruned exactly; ``groups`` are those to blame, where they could be found."""

    def __init__(self, message: str, groups: Sequence[str]) -> None:
        super().__init__(message)
        self.groups = tuple(groups)


@torch.no_grad()
def check_exactness(
    model: nn.Module,
    graph: Graph,
    plan: SlicePlan,
    *,
    samples: int = 2,
    seed: int = 0,
    tolerance: float = 1e-9,
) -> float:
    """Prove on random channel subsets that zeroed == sliced == surgically pruned == reloaded.

    The proof runs on a float64 copy with random weights and with batch-norm statistics of random images, so
    that neither rounding nor a signal that dies out can hide or feign a difference.

    Args:
        samples: how many random subsets to try (every group at a random width).
        tolerance: largest allowed difference of the outputs, relative to the largest output.

    Returns:
        The largest relative difference seen between the zeroed and the cut network. Sliced, surgically pruned
        and reloaded networks must agree bit for bit.

    Raises:
        InexactError: the network cannot be pruned exactly; names the groups and what leaves them out.
    """
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(IMAGES, *graph.input_shape, generator=generator, dtype=torch.float64)
    lively = _lively_copy(with_drawn_buffers(model, graph, generator), images, generator)
    proof = _Proof(lively, graph, plan, images, tolerance)
    worst = 0.0
    for _ in range(samples):
        cut = plan.cut_to(_random_subsets(graph, generator))
        difference = proof.difference(cut)
        if not difference <= tolerance:
            raise proof.blame(cut, difference)
        worst = max(worst, difference)
        proof.check_surgery(cut)
    proof.check_reloaded(cut)
    return worst


def _lively_copy(model: nn.Module, images: Tensor, generator: torch.Generator) -> nn.Module:
    """Return a float64 copy in eval mode with random weights, whose batch norms have seen ``images``."""
    twin = copy.deepcopy(model).cpu().double().eval()
    for name, parameter in twin.named_parameters():
        if parameter.numel() == len(parameter):  # one number a channel: a scale or an offset
            parameter.uniform_(0.5, 1.5, generator=generator)
            parameter.sub_(1.0 if name.endswith("bias") else 0.0)
        else:
            parameter.normal_(std=(2 / parameter[0].numel()) ** 0.5, generator=generator)
    norms = [module for module in twin.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    twin(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum
    return twin


def _random_subsets(graph: Graph, generator: torch.Generator) -> dict[str, Tensor]:
    kept = {}
    for group in graph.groups:
        # At least half stays, as a signal that has died out would make every network equal, and one goes.
        half = (group.width + 1) // 2
        width = int(torch.randint(half, max(group.width, half + 1), (1,), generator=generator))
        kept[group.name] = torch.randperm(group.width, generator=generator)[:width].sort().values
    return kept


@dataclass(frozen=True)
class _Proof:
    """Comparisons of cut versions of one lively network."""

    model: nn.Module
    graph: Graph
    plan: SlicePlan
    images: Tensor
    tolerance: float

    def outputs(self, model: nn.Module) -> Tensor:
        """What a version computes: (images, columns)."""
        return as_matrix(model(self.images.clone()), len(self.images))  # a network may work in place

    def difference(self, cut: Cut) -> float:
        """Relative difference of the zeroed and the sliced network; infinite where one cannot run."""
        try:
            zeroed = self.outputs(zero_model(self.model, self.graph, cut))
            sliced = self.outputs(slice_model(self.model, cut))
            return float((zeroed - sliced).abs().max() / zeroed.abs().max().clamp(min=1e-12))
        except Exception as error:  # what a user's network with missing channels raises is anyone's guess
            if out_of_memory(error):
                raise
            return float("inf")

    def blame(self, cut: Cut, difference: float) -> InexactError:
        """Say which groups differ: those that, added to groups which can be cut together, spoil that."""
        good = {group.name: torch.arange(group.width) for group in self.graph.groups}
        faulty: list[str] = []
        for group in self.graph.groups:
            tried = {**good, group.name: cut.kept[group.name]}
            alone = self.difference(self.plan.cut_to(tried))
            if alone <= self.tolerance:
                good = tried
                continue
            difference = difference if faulty else alone
            faulty.append(group.name)
        return self.refusal(
            faulty,
            f"the zeroed and the cut network differ by {difference:.3g} (allowed {self.tolerance:g}); an "
            "operation mixes these channels in a way the channel graph does not see",
        )

    def check_surgery(self, cut: Cut) -> None:
        """Make sure that torch-pruning cuts the same network, bit for bit."""
        sliced = slice_model(self.model, cut)
        operated = surgery(self.model, self.graph, cut)
        theirs = operated.state_dict()
        for name, ours in sliced.state_dict().items():
            if not isinstance(ours, Tensor):
                continue
            if name not in theirs or ours.shape != theirs[name].shape or not torch.equal(ours, theirs[name]):
                got = tuple(theirs[name].shape) if name in theirs else "nothing"
                reason = f"slicing gives {name} of shape {tuple(ours.shape)}, torch-pruning {got} or others"
                raise self.refusal(self.groups_at(name), reason)
        try:
            same = torch.equal(self.outputs(sliced), self.outputs(operated))
        except Exception as error:
            if out_of_memory(error):
                raise
            raise self.refusal([], f"as torch-pruning cuts it, it fails: {_brief(error)}") from error
        if not same:
            raise self.refusal([], "sliced and cut networks differ in output")

    def check_reloaded(self, cut: Cut) -> None:
        """Make sure that widths and weights on disk are all that the cut network is."""
        sliced = slice_model(self.model, cut)
        expected = self.outputs(sliced)
        with tempfile.TemporaryDirectory() as folder:
            strategy, weights = Path(folder) / "strategy.json", Path(folder) / "model.safetensors"
            _strategy(self.graph, cut.widths).save(strategy)
            try:
                save_safetensors(sliced.state_dict(), weights)
                del sliced  # large networks are held several times as it is
                reloaded = shaped(self.model, self.graph.input_shape, Strategy.load(strategy))
                load_into(reloaded, load_state_dict(weights), "the cut network")
                same = torch.equal(expected, self.outputs(reloaded))
            except Exception as error:
                if out_of_memory(error):
                    raise
                raise self.refusal([], f"stored and read again, it fails: {_brief(error)}") from error
        if not same:
            reason = "it computes something else; is there a state outside of its parameters and buffers?"
            raise self.refusal([], f"stored and read again, {reason}")

    def groups_at(self, tensor: str) -> list[str]:
        """Names of the groups that lie on a tensor's module."""
        module = tensor.rpartition(".")[0]
        return [g.name for g in self.graph.groups if any(slot.module == module for slot in g.slots)]

    def refusal(self, groups: Sequence[str], reason: str) -> InexactError:
        """One line: which groups, why, and what leaves them out."""
        named = ", ".join(map(repr, groups))
        where = f"in group{'s' * (len(groups) > 1)} {named} " if groups else ""
        hint = f": compressor.exclude=[{','.join(groups)}] leaves that out" if groups else ""
        message = f"{type(self.model).__name__} cannot be pruned exactly: {where}{reason}{hint}"
        return InexactError(message, groups)


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def _strategy(graph: Graph, widths: Sequence[int]) -> Strategy:
    groups = zip(graph.group_names, graph.dense_widths, widths, strict=True)
    return Strategy(
        tuple(GroupWidth(name, dense, kept) for name, dense, kept in groups),
        macs_ratio=1.0,
        params_ratio=1.0,
        seed=0,
    )
