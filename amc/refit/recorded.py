"""Sequential refit of a network whose forward pass cannot be traced: its calls are recorded by hooks.

For every layer, in the order of execution, the pruned network is run up to it, and its weights are solved for
from the input that it gets there to the dense layer's output. The forward pass may hold any Python. What lies
between layers is not seen: errors of other branches are not made up for, and no activation frees targets.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from amc.cutting.modules import Keep
from amc.cutting.slicing import Cut
from amc.errors import AmcError
from amc.graph.layers import MapNorm
from amc.refit.calls import Calls, input_shapes
from amc.refit.images import Progress, RefitImages
from amc.refit.layer import norm_after


class RecordedRefit:
    """Refits pruned versions of one network layer by layer, in the order of execution.

    Args:
        dense: the dense network, in eval mode.
        images: calibration images; every refitted layer takes a part of a forward pass over them.
        positions_per_image: output positions sampled from each image and layer.
        norms: layer -> the batch norm that alone reads its output.
        seed: of the choice of positions.
        progress: called with 1 after every layer.

    Raises:
        AmcError: no layer can be refitted.
    """

    def __init__(
        self,
        dense: nn.Module,
        images: RefitImages,
        *,
        positions_per_image: int,
        norms: Mapping[str, str],
        seed: int = 0,
        progress: Progress = None,
    ) -> None:
        self._dense = dense
        shapes = input_shapes(dense, images.parted[0][0])
        modules = dict(dense.named_modules())
        kinds = [isinstance(modules[name], MapNorm) for name in shapes]
        # Layers and norms behind the first layer: what that one gets, pruning does not change.
        steps = list(shapes)[kinds.index(False) + 1 :] if False in kinds else []
        self._calls = Calls(dense, images, set(steps), positions_per_image=positions_per_image, seed=seed)
        self._steps = tuple(
            name for name in steps if name in self._calls.layers or isinstance(modules[name], MapNorm)
        )
        self._norms = {
            layer: norm
            for layer, norm in norms.items()
            if len(shapes.get(layer, ())) == len(shapes.get(norm, ()))
        }
        if not self._calls.layers:
            raise AmcError(f"{type(dense).__name__} has no layer behind the first that can be refitted")
        if progress is not None:
            progress(1)

    def __call__(
        self,
        pruned: nn.Module,
        cut: Cut,
        *,
        ridge: float,
        reestimate_norms: bool,
        progress: Progress = None,
    ) -> int:
        """Refit ``pruned`` in place and return how many layers were refitted; see ``SequentialRefit``."""
        refitted = 0
        for name in self._steps:
            if name in self._calls.layers:
                refitted += self._refit(pruned, name, cut, ridge)
            elif reestimate_norms:
                self._calls.reestimate(pruned, name)
            if progress is not None:
                progress(1)
        return refitted

    def _refit(self, pruned: nn.Module, name: str, cut: Cut, ridge: float) -> bool:
        outputs = cut.keeps.get(name, Keep()).outputs
        norm = norm_after(pruned, self._dense, self._norms.get(name), outputs)
        return self._calls.refit(pruned, name, norm, outputs, ridge=ridge)
