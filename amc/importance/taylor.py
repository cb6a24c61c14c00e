"""First-order Taylor terms of the loss in the inputs of layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from amc.data import LabelledImages, check_labels
from amc.errors import AmcError
from amc.importance.gradients import differentiating, gradient_batches, recording
from amc.scoring.halving import in_parts
from amc.scoring.run import as_logits, copied, in_eval


def taylor_terms(
    model: nn.Module,
    layers: Sequence[str],
    calibration: LabelledImages,
    *,
    device: str | torch.device = "cpu",
) -> dict[str, Tensor]:
    """Sum weight x gradient over all weights of an input channel, for every batch of images.

    To first order the mean cross-entropy falls by this amount when the layer loses the channel. The network
    runs in eval mode and float32; its parameters may be frozen.

    Args:
        model: the dense network; it is not changed.
        layers: names of linear layers and of convolutions without groups.
        calibration: images (N, C, H, W) and labels (N,).
        device: where gradients are computed.

    Returns:
        Layer name -> (batches, in_channels) float64, on the CPU.

    Raises:
        AmcError: no images, a label has no logit, or the network gives NaN or cannot be differentiated.
    """
    if not len(calibration):
        raise AmcError("got no calibration images, expected at least one: order=taylor needs them")
    model = in_eval(copied(model).to(device).float()).requires_grad_(False)
    modules = dict(model.named_modules())
    weights = [modules[name].weight.requires_grad_() for name in layers]
    inputs = [0 if isinstance(modules[name], nn.ConvTranspose2d) else 1 for name in layers]
    recorded = recording(model, layers, calibration.images[:1].to(device), "order=taylor")
    rows = []
    for chosen in gradient_batches(len(calibration)):
        batch = LabelledImages(calibration.images[chosen].float(), calibration.labels[chosen]).to(device)
        rows.append(_batch_terms(model, weights, inputs, batch, recorded))
    terms = {name: torch.stack(own) for name, own in zip(layers, zip(*rows, strict=True), strict=True)}
    for name, own in terms.items():
        if not own.isfinite().all():
            raise AmcError(
                f"the gradient of the loss by layer {name!r} is not finite; NaN weights or images?"
            )
    return terms


@torch.enable_grad()
def _batch_terms(
    model: nn.Module,
    weights: Sequence[Tensor],
    inputs: Sequence[int],
    batch: LabelledImages,
    recorded: Callable[[], AbstractContextManager[None]],
) -> list[Tensor]:
    """Return the terms of every weight for one batch: (in_channels,) float64, on the CPU.

    Args:
        inputs: the axis of each weight that holds the input channels.
        recorded: the context of the forward pass.
    """

    def gradients_of(part: Tensor) -> tuple[Tensor, ...]:
        chosen = batch.labels[part]
        with recorded():
            outputs = as_logits(model(batch.images[part]))
        check_labels(chosen, outputs.shape[1])
        # In double precision, so that images of which the network is certain still have a gradient.
        loss = F.cross_entropy(outputs.double(), chosen) * (len(part) / len(batch))
        return torch.autograd.grad(loss, weights)

    with differentiating(model, "order=taylor"):
        parts = in_parts(model, torch.arange(len(batch)), len(batch), gradients_of)
    gradients = [torch.stack(own).sum(0) for own in zip(*parts, strict=True)]
    products = [w.detach() * g for w, g in zip(weights, gradients, strict=True)]
    return [
        product.sum([dim for dim in range(product.ndim) if dim != axis], dtype=torch.float64).cpu()
        for product, axis in zip(products, inputs, strict=True)
    ]
