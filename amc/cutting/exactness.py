"""The proof, made before a search, that a network can be pruned: four ways to cut it must compute the same.

Zeroed (dense shapes, removed channels silent and unread), sliced, cut by torch-pruning, and rebuilt from what
is stored on disk, in a network that is built anew where that is possible. A cut classifier must also take
one training step. The proof is of the structure: it runs on a copy with random weights, so that no layer is
silent because it was initialised to zero or scaled to a millionth.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor, nn

from amc.cutting.lively import lively_copy, random_subsets, without_halves
from amc.cutting.reasons import UNSEEN, hidden_state, left_out, reason_of
from amc.cutting.slicing import Cut, Kept, SlicePlan, shaped, slice_model
from amc.cutting.surgery import surgery
from amc.cutting.trial import (
    IMAGES_OF_A_STEP,
    check_repeatable,
    difference_of,
    modules_run,
    ready,
    take_step,
)
from amc.cutting.zeroing import with_drawn_buffers, zero_model
from amc.errors import AmcError, FileError, NotPrunableError, brief, first_line, out_of_memory
from amc.graph.groups import ChannelGroup, Graph, leave_whole
from amc.models.checkpoint import load_into
from amc.models.state_files import load_state_dict, save_safetensors
from amc.scoring.flatten import as_matrix
from amc.scoring.precision import without_autocast
from amc.scoring.run import cast, copied, in_eval, settle
from amc.seeds import draws_kept
from amc.strategy import GroupWidth, Strategy

IMAGES = 4
"""Random images that the networks are compared on."""

FLOAT32_TOLERANCE = 1e-4
"""Smallest tolerance for a network that runs in float32 only."""

Rebuild = Callable[[], nn.Module]
"""Builds the dense network anew, with any weights and from other random draws."""


class InexactError(NotPrunableError):
    """A network cannot be pruned exactly.

    Attributes:
        groups: those to blame, where they could be found.
        reasons: name of each of these groups -> why it cannot be cut.
    """

    def __init__(self, message: str, groups: Sequence[str], reasons: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.groups = tuple(groups)
        self.reasons = dict.fromkeys(groups, message) | dict(reasons or {})


@dataclass(frozen=True)
class Proved:
    """What is proved of a network.

    Attributes:
        graph: its channel groups that can be cut exactly; those that cannot are ``unprunable``, with reasons.
        difference: see ``check_exactness``.
        left_whole: the groups that the proof has found faulty.
        untrainable: why the dense network cannot take a training step; None if it can, or is no classifier.
    """

    graph: Graph
    difference: float
    left_whole: tuple[str, ...] = ()
    untrainable: str | None = None


def prove(
    model: nn.Module, graph: Graph, *, rebuild: Rebuild | None = None, samples: int = 1, seed: int = 0
) -> Proved:
    """Find the groups of a graph that can be cut exactly; see ``check_exactness``.

    Groups that spoil the proof are left whole, and the proof is made again with the others.

    Raises:
        NotPrunableError: no group is left, or the network as a whole is to blame; says why.
    """
    left: list[str] = []
    while True:
        try:
            difference, untrainable = _checked(
                model,
                graph,
                SlicePlan(graph, model),
                samples=samples,
                seed=seed,
                tolerance=1e-9,
                rebuild=rebuild,
            )
        except InexactError as error:
            if not error.groups:
                raise
            left += error.groups
            whole = leave_whole(graph, error.reasons)
            if not whole.groups:
                raise _nothing_left(model, whole, left) from error
            graph = whole
        else:
            return Proved(graph, difference, tuple(left), untrainable)


def _nothing_left(model: nn.Module, graph: Graph, left: Sequence[str], most: int = 4) -> NotPrunableError:
    why = [f"{item.name}: {item.reason}" for item in graph.unprunable if item.name in left]
    more = f"; and {len(why) - most} more" if len(why) > most else ""
    return NotPrunableError(
        f"{type(model).__name__} cannot be pruned exactly, no channel group is left: "
        f"{'; '.join(why[:most])}{more}"
    )


def check_exactness(
    model: nn.Module,
    graph: Graph,
    plan: SlicePlan,
    *,
    samples: int = 2,
    seed: int = 0,
    tolerance: float = 1e-9,
    rebuild: Rebuild | None = None,
) -> float:
    """Prove on random channel subsets that zeroed == sliced == surgically pruned == reloaded.

    The proof runs on a float64 copy with random weights and with batch-norm statistics of random images, so
    that neither rounding nor a signal that dies out can hide or feign a difference. A network that does not
    run in float64 is proved in float32, to ``FLOAT32_TOLERANCE``. Global random states are not affected.

    Args:
        samples: how many random subsets to try (every group at a random width).
        tolerance: largest allowed difference of the outputs, relative to the largest output.
        rebuild: builds the dense network anew, with any weights; the stored cut is read into it, so that a
            state outside of parameters and buffers is found. By default it is read into a copy.

    Returns:
        The largest relative difference seen between the zeroed and the cut network. Sliced, surgically pruned
        and reloaded networks must agree bit for bit.

    Raises:
        InexactError: the network cannot be pruned exactly; names the groups and what leaves them out.
        NotPrunableError: its outputs are not repeatable in evaluation mode.
    """
    return _checked(model, graph, plan, samples=samples, seed=seed, tolerance=tolerance, rebuild=rebuild)[0]


@without_autocast()
@torch.no_grad()
def _checked(
    model: nn.Module,
    graph: Graph,
    plan: SlicePlan,
    *,
    samples: int,
    seed: int,
    tolerance: float,
    rebuild: Rebuild | None,
) -> tuple[float, str | None]:
    """Make the proof; return the difference, and why the dense network cannot be trained."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(IMAGES, *graph.input_shape, generator=generator, dtype=torch.float64)
    ready(model, graph.input_shape)
    with draws_kept(), _settled_after(model):
        twin, images = lively_copy(with_drawn_buffers(model, graph, generator), images, generator)
        if images.dtype != torch.float64:
            tolerance = max(tolerance, FLOAT32_TOLERANCE)
        check_repeatable(twin, images, tolerance)
        proof = _Proof(twin, graph, plan, images, tolerance, rebuild)
        worst = 0.0
        for _ in range(samples):
            kept = random_subsets(graph, generator)
            for subset in (kept, *without_halves(graph, kept)):
                worst = max(worst, proof.check_sliced(subset))
            proof.check_surgery(kept)
        proof.check_reloaded(kept)
        return worst, proof.check_training(kept, model)


@contextmanager
def _settled_after(model: nn.Module) -> Iterator[None]:
    """Detach what hooks of copies have put into the network itself, so that it can be copied again."""
    try:
        yield
    finally:
        settle(model)


@dataclass(frozen=True)
class _Proof:
    """Comparisons of cut versions of one lively network."""

    model: nn.Module
    graph: Graph
    plan: SlicePlan
    images: Tensor
    tolerance: float
    rebuild: Rebuild | None = None

    def outputs(self, model: nn.Module) -> Tensor:
        """What a version computes: (images, columns)."""
        return as_matrix(model(self.images.clone()), len(self.images))  # a network may work in place

    def check_sliced(self, kept: Kept) -> float:
        """Compare the zeroed and the sliced network; return their relative difference.

        Raises:
            InexactError: it is too large, or one of them does not run.
        """
        difference, fault = self.difference(kept)
        if difference <= self.tolerance:
            return difference
        faulty = self.blamed(kept, lambda part, own: not part.difference(own)[0] <= part.tolerance)
        if faulty:
            _, fault = self.part(faulty[:1]).difference({faulty[0]: kept[faulty[0]]})
        raise self.refusal(faulty, f"{fault}; {UNSEEN}", kept, self.outputs)

    def difference(self, kept: Kept) -> tuple[float, str]:
        """Return the relative difference of the zeroed and the sliced network, and what it is in words.

        It is infinite where one cannot run.
        """
        step = "its channels cannot be taken out"
        try:
            cut = self.plan.cut_to(kept)
            step = "with silent channels it fails"
            zeroed = self.outputs(zero_model(self.model, self.graph, cut))
            step = "without channels it fails"
            difference = difference_of(zeroed, self.outputs(slice_model(self.model, cut)))
        except Exception as error:  # what a user's network with missing channels raises is anyone's guess
            if out_of_memory(error):
                raise
            return float("inf"), f"{step}: {brief(error)}"
        if not isfinite(difference):
            return float("inf"), "the zeroed or the cut network gives NaN or infinity"
        told = f"the zeroed and the cut network differ by {difference:.3g} (allowed {self.tolerance:g})"
        return difference, told

    def check_surgery(self, kept: Kept) -> None:
        """Make sure that torch-pruning cuts the same network, bit for bit.

        Raises:
            InexactError: it does not.
        """
        if (reason := self.surgery_fault(kept)) is not None:
            faulty = self.blamed(kept, lambda part, own: part.surgery_fault(own) is not None)
            raise self.refusal(faulty, reason, kept, self.outputs)

    def surgery_fault(self, kept: Kept) -> str | None:
        """Return how the networks differ that slicing and torch-pruning make."""
        cut = self.plan.cut_to(kept)
        sliced = slice_model(self.model, cut)
        try:
            operated = surgery(self.model, self.graph, cut)
            theirs = operated.state_dict()
            for name, ours in sliced.state_dict().items():
                if not isinstance(ours, Tensor):
                    continue
                if name not in theirs or ours.shape != theirs[name].shape:
                    got = tuple(theirs[name].shape) if name in theirs else "nothing"
                    return f"slicing gives {name} of shape {tuple(ours.shape)}, torch-pruning {got}"
                if not torch.equal(ours, theirs[name]):
                    return f"slicing and torch-pruning give other numbers in {name}"
            if torch.equal(self.outputs(sliced), self.outputs(operated)):
                return None
            return "sliced and cut networks differ in output"
        except Exception as error:
            if out_of_memory(error):
                raise
            return f"as torch-pruning cuts it, it fails: {brief(error)}"

    def check_reloaded(self, kept: Kept) -> None:
        """Make sure that widths and weights on disk are all that the cut network is.

        Raises:
            InexactError: they are not.
        """
        if (reason := self.reload_fault(kept)) is not None:
            faulty = self.blamed(kept, lambda part, own: part.reload_fault(own) is not None)
            raise self.refusal(faulty, reason, kept, None)

    def reload_fault(self, kept: Kept) -> str | None:
        """Return how the network differs that is read from what is stored."""
        cut = self.plan.cut_to(kept)
        sliced = slice_model(self.model, cut)
        expected = self.outputs(sliced)
        with tempfile.TemporaryDirectory() as folder:
            strategy, weights = Path(folder) / "strategy.json", Path(folder) / "model.safetensors"
            _strategy(self.graph, cut.widths).save(strategy)
            try:
                save_safetensors(sliced.state_dict(), weights)
                del sliced  # large networks are held several times as it is
                # Traced in float32 as ever: some modules are other operations in float64.
                reloaded = shaped(self.fresh(), self.graph.input_shape, Strategy.load(strategy))
                reloaded = in_eval(cast(reloaded, self.images.dtype))
                load_into(reloaded, load_state_dict(weights), "the cut network")
                if torch.equal(expected, self.outputs(reloaded)):
                    return None
            except Exception as error:
                if out_of_memory(error):
                    raise
                return f"stored and read again, it fails: {self.why_unread(error)}"
        return _keeps_state(self.model, self.fresh())

    def why_unread(self, error: Exception) -> str:
        """Say why what is stored cannot be read; the network's state dict may leave out some tensors."""
        if isinstance(error, FileError) and (lacking := left_out(self.model)):
            return f"its state dict leaves out {lacking[0]} ({len(lacking)} in all); likely cause: a hook"
        return first_line(error) if isinstance(error, AmcError) else brief(error)

    def fresh(self) -> nn.Module:
        """Build the dense network anew in float32, where it is known how; else return a copy of it."""
        if self.rebuild is None:
            return in_eval(copied(self.model).float())
        return in_eval(ready(self.rebuild(), self.graph.input_shape).cpu().float())

    def check_training(self, kept: Kept, dense: nn.Module) -> str | None:
        """Make sure that a cut classifier takes a training step; with its own weights, in float32.

        Returns:
            Why the dense network takes none; then nothing is said of the cut one.

        Raises:
            InexactError: only the cut network takes none.
        """
        if not self.graph.classifies:
            return None
        own = replace(self, model=copied(settle(dense)).cpu().float(), images=self.images.float())
        if own.training_fault(own.plan.cut_to(kept)) is None:
            own.check_state(kept)
            return None
        if (reason := own.training_fault(None)) is not None:
            return reason
        faulty = own.blamed(kept, lambda part, few: part.training_fault(part.plan.cut_to(few)) is not None)
        raise own.refusal(faulty, "the cut network fails in training mode", kept, own.step)

    def check_state(self, kept: Kept) -> None:
        """Make sure that a training step leaves no state outside of parameters and buffers.

        Raises:
            InexactError: it does.
        """
        cut = self.plan.cut_to(kept)
        trained, again = slice_model(self.model, cut), slice_model(self.fresh(), cut)
        self.step(trained)
        try:
            again.load_state_dict(trained.state_dict())
            found, expected = self.outputs(again), self.outputs(in_eval(trained))
            if torch.allclose(found, expected, rtol=0, atol=0, equal_nan=True):
                return
        except Exception as error:  # a user's network may raise anything
            if out_of_memory(error):
                raise
        raise self.refusal([], f"after a training step {_keeps_state(trained, again)}", kept, None)

    def training_fault(self, cut: Cut | None) -> str | None:
        """Return why a cut network takes no training step; the dense one if there is no cut."""
        try:
            self.step(copied(self.model) if cut is None else slice_model(self.model, cut))
        except Exception as error:  # a user's network may raise anything
            if out_of_memory(error):
                raise
            said = first_line(error) if isinstance(error, AmcError) else brief(error)
            return f"in training mode {said}"
        return None

    def step(self, model: nn.Module) -> None:
        """Take a training step, in place."""
        take_step(model, self.images[:IMAGES_OF_A_STEP])

    def part(self, names: Sequence[str]) -> _Proof:
        """Return the same with some groups only; the others are not touched."""
        groups = tuple(group for group in self.graph.groups if group.name in names)
        graph = replace(self.graph, groups=groups)
        return replace(self, graph=graph, plan=SlicePlan(graph, self.model))

    def blamed(self, kept: Kept, fails: Callable[[_Proof, Kept], bool]) -> list[str]:
        """Return the groups that, added to groups which can be cut together, spoil that.

        Nothing is returned if the network fails with all groups whole, too.
        """
        if fails(self.part([]), {}):
            return []
        good: dict[str, Tensor] = {}
        faulty: list[str] = []
        for group in self.graph.groups:
            tried = {**good, group.name: kept[group.name]}
            if fails(self.part(list(tried)), tried):
                faulty.append(group.name)
            else:
                good = tried
        return faulty

    def refusal(
        self,
        groups: Sequence[str],
        reason: str,
        kept: Kept,
        run: Callable[[nn.Module], object] | None,
    ) -> InexactError:
        """One line: which groups, why, and what leaves them out.

        Args:
            run: runs a network in the way in which the cut one fails, if it does.
        """
        named = ", ".join(map(repr, groups))
        where = f"in group{'s' * (len(groups) > 1)} {named} " if groups else ""
        hint = f": {_exclusion(groups)} leaves that out" if groups else ""
        message = f"{type(self.model).__name__} cannot be pruned exactly: {where}{reason}{hint}"
        by_name = {group.name: group for group in self.graph.groups}
        reasons = {name: self.why(by_name[name], kept, run) or reason for name in groups}
        return InexactError(message, groups, reasons)

    def why(self, group: ChannelGroup, kept: Kept, run: Callable[[nn.Module], object] | None) -> str | None:
        """Return the reason that one group gives alone."""
        try:
            cut = self.part([group.name]).plan.cut_to({group.name: kept[group.name]})
            evaluated = modules_run(in_eval(copied(self.model)), self.images)
            told = reason_of(self.model, group, cut, run or (lambda model: None), evaluated)
            return told or self.why_reduced(group, kept)
        except Exception as error:  # the reason is a courtesy: the group stays whole without it, too
            if out_of_memory(error):
                raise
            return None

    def why_reduced(self, group: ChannelGroup, kept: Kept) -> str | None:
        """Return that removed channels change what is taken of all, if silent ones alone do, or None."""
        if not group.reductions:
            return None
        difference, told = self.part([group.name]).difference({group.name: kept[group.name]})
        if difference <= self.tolerance:
            return None
        return f"{' and '.join(group.reductions)} over the channels: removing some would change it; {told}"


def _keeps_state(model: nn.Module, other: nn.Module) -> str:
    """Say that a network keeps state outside of its state dict, with the attribute where two builds tell."""
    state = hidden_state(model, other)
    return (
        "it computes something else when it is built anew and loaded: it keeps state outside of its "
        f"parameters and buffers{f' ({state})' if state else ''}"
    )


def _exclusion(groups: Sequence[str]) -> str:
    """Return the setting that leaves groups out, as a shell takes it: # needs quotes in Hydra."""
    if not any("#" in name for name in groups):
        return f"compressor.exclude=[{','.join(groups)}]"
    return f'"compressor.exclude=[{",".join(map(repr, groups))}]"'


def _strategy(graph: Graph, widths: Sequence[int]) -> Strategy:
    groups = zip(graph.group_names, graph.dense_widths, widths, strict=True)
    return Strategy(
        tuple(GroupWidth(name, dense, kept) for name, dense, kept in groups),
        macs_ratio=1.0,
        params_ratio=1.0,
        seed=0,
    )
