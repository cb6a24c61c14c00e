"""The training in stage ``quantize``: the quantized network learns weights and step sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from amc.quantization.calibration import Quantized
from amc.quantization.learned.network import trained
from amc.quantization.settings import QuantizeSettings
from experiments.stages.networks.finetune import described, is_worse, val_top1
from experiments.stages.networks.fitting import fit

if TYPE_CHECKING:
    from experiments.run.run import Run


def train_quantized(
    run: Run, made: Quantized, settings: QuantizeSettings
) -> tuple[Quantized, dict[str, Any]]:
    """Return the better of the trained and the calibrated network on search_val, and the facts.

    A dense network that may know these images flatters the calibrated one, which has its weights, as it
    flatters a pruned one before fine-tuning; training forgets them. So the same margin holds.

    Epochs and learning rate are those of ``quantize``, the rest is that of ``finetune`` but for ``until``,
    ``method``, ``hint_weight``, ``compile``, ``sharded`` and ``processes``: this process trains alone, under
    torchrun, too. Integers need float32: bfloat16 has fewer digits than they have. Signs do not.
    """
    finetuning = run.train_settings(run.config.finetune)
    training = replace(
        finetuning,
        epochs=settings.epochs,
        lr=settings.lr,
        precision=finetuning.precision if settings.method == "binary" else "fp32",
        until=None,
        compile=False,
        method="full",
        hint_weight=0.0,
        sharded=False,
    )

    def learn(network: nn.Module) -> None:
        checkpoint, dense = run.folder.checkpoint("quantize"), run.problem.original.dense
        fit(run, network, training, checkpoint, "quantize", run.config.finetune, dense=dense, alone=True)

    found, before = trained(made, learn), val_top1(run, made.model)
    after = val_top1(run, found.model)
    worse = is_worse(run, after, before)
    print(f"quantize: {settings.method}: {described(after, before, settings.epochs, worse=worse)}")
    facts = {"method": settings.method, "epochs": settings.epochs, "calibrated_top1": before}
    facts |= {"trained_top1": after, "kept": "calibrated" if worse else "trained"}
    return made if worse else found, {"training": facts}
