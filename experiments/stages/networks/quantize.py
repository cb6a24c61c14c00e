"""Stage ``quantize``: the final network with integer weights and activations, as runtimes compute it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from amc.errors import AmcError, FileError
from amc.export.metadata import described
from amc.export.quantized import quantized_refusal, stored_otherwise
from amc.loading import WEIGHTS
from amc.progress import progress
from amc.quantization import storage
from amc.quantization.calibration import Quantized, not_finite, quantize
from amc.quantization.description import Quantization
from amc.quantization.layers import TYPES
from amc.quantization.sensitivity import Sensitivity
from amc.quantization.settings import TRAINED, QuantizeSettings
from amc.quantization.simulation import simulated
from amc.scoring.run import outputs
from amc.scoring.scores import likeness, top1
from amc.strategy import Strategy
from experiments.config.runtimes import backend_of, quantize_settings
from experiments.report.carried import write_carried
from experiments.report.quantization import sensitivity_rows
from experiments.report.text import aligned
from experiments.run.folder import DENSE, quantizes
from experiments.stages.networks.qat import train_quantized

if TYPE_CHECKING:
    from experiments.run.run import Run

BATCH_SIZE = 100
"""Images that a quantized network is judged on at once, everywhere: dynamic ranges depend on it."""
_TOLD = 5
"""Layers, and remarks, that are printed."""


def run(run: Run) -> dict[str, Any]:
    """Write ``quantization.json`` and its tensors, of the pruned network, or else of the dense one.

    Raises:
        AmcError: the calibration images are too few or constant, or no layer can be quantized.
    """
    settings = quantize_settings(run.config.quantize)
    if settings.method == "none":
        _forget(run)
        print("quantize: quantize.method=none: the network stays float32")
        return {"method": "none"}
    for line in (*limits(run, settings.form), *_other_sizes(run, settings)):
        print(f"quantize: {line}")
    model, weights = final_network(run)
    if weights == DENSE and run.folder.strategy.exists():
        print("quantize: the dense network, as none was pruned by the strategy; stages=[prune] does that")
    with progress(None, "quantize", "step") as bar:

        def advance(step: str) -> None:
            bar.set_postfix(step=step)
            bar.update()

        made = quantize(model, run.problem.chosen.calibration.images, settings, progress=advance)
    training: dict[str, Any] = {}
    if settings.method in TRAINED:
        made, training = train_quantized(run, made, settings)
    facts = {**_judged(run, model, made), **_parts(made), **training}
    written = replace(made.description, weights=weights, model=run.problem.spec.to_json())
    _forget(run)
    storage.save(run.folder.path, written, made.tensors)
    _tell(facts, made)
    return facts | _size(run, settings, made.description)


def _forget(run: Run) -> None:
    """Remove what is known of the quantization before; what is known of the pruned network stays."""
    run.folder.forget("quantize", "evaluate")
    for stage, float_parts in (("export", _float_files), ("benchmark", _float_times)):
        try:
            record = run.folder.recorded(stage) if run.folder.model.exists() else None
        except FileError:
            record = None
        if record is None:  # damaged, or about a quantized dense network alone
            run.folder.forget(stage)
        elif (kept := float_parts(run, record)) != record:
            run.folder.record(stage, kept)
            print(f"quantize: of stage {stage}, what is about the former quantized network is removed")


def _float_files(run: Run, record: dict[str, Any]) -> dict[str, Any]:
    """Return the record of stage ``export`` without the quantized network, whose files are removed."""
    if not record.get("quantized"):
        return record
    former, splits = run.folder.exported(), run.problem.splits
    run.folder.exports.mkdir(exist_ok=True)
    about = described(splits, classifies=run.problem.graph.classifies)
    predict = write_carried(run.folder.exports, run.problem.spec.name, about, record["files"])
    kept = {run.folder.path / own["file"] for own in (*record["files"], *predict)}
    run.folder.remove_exported(path for path in former if path not in kept)
    return {**record, "quantized": None, "predict": predict}


def _float_times(run: Run, record: dict[str, Any]) -> dict[str, Any]:
    """Return the record of stage ``benchmark`` without the times and sizes of the quantized network."""

    def without(found: dict[str, Any] | None) -> dict[str, Any]:
        return {name: value for name, value in (found or {}).items() if name != "quantized"}

    named = ("others", "file_bytes", "peak_memory_bytes")
    return record | {
        kind: [each | {key: without(each[key]) for key in named if key in each} for each in record[kind]]
        for kind in ("runtimes", "throughput")
        if kind in record
    }


def final_network(run: Run) -> tuple[nn.Module, str]:
    """Return the pruned network, or the dense one if none was pruned, and the name of its file."""
    if run.folder.model.exists():
        return run.pruned(run.folder.model), WEIGHTS
    run.problem.keep_dense()
    return run.problem.dense, DENSE


def simulation(run: Run) -> tuple[str, nn.Module] | None:
    """Return the method and the quantized network of a run; None if its final network is not quantized.

    A quantization of another dense network or strategy counts as none; a line is printed about it.

    Raises:
        FileError: a file is damaged, or belongs to another network.
    """
    if not quantizes(run.records.read("quantize")):
        return None
    description, tensors = storage.load(run.folder.path)
    shape = run.problem.splits.input_shape
    return description.method, simulated(final_network(run)[0], shape, description, tensors)


def limits(run: Run, method: str) -> list[str]:
    """Return what the configured runtimes and formats cannot do with a method, or do slowly, a line each."""
    lines = [
        f"export: {reason}"
        for name in run.config.export.formats
        if (reason := quantized_refusal(name, method)) is not None
    ]
    for name in run.config.latency.backends:
        methods = getattr(backend_of(name, run.config.latency), "methods", {})
        if method not in methods:
            lines.append(f"{name} does not run {method} here: the quantized network is not timed on it")
        elif methods[method]:
            lines.append(f"{name}: {methods[method]}")
    return lines


def _other_sizes(run: Run, settings: QuantizeSettings) -> Iterator[str]:
    """Yield a line for each format whose file has another size than a limit on the bytes counts."""
    if run.config.budget.size_ratio is None:
        return
    for name in run.config.export.formats:
        held = quantized_refusal(name, settings.form) is None
        if held and (otherwise := stored_otherwise(name, settings)) is not None:
            yield f"budget.size_ratio counts the bytes of the onnx file; {otherwise}"


def test_outputs(run: Run, model: nn.Module) -> Tensor:
    """Return a network's outputs on the test images, computed on the CPU: (N, columns)."""
    return outputs(model, run.problem.splits.test().images, BATCH_SIZE)


def _judged(run: Run, model: nn.Module, made: Quantized) -> dict[str, Any]:
    exact, method = test_outputs(run, model), made.description.method
    try:
        found = test_outputs(run, made.model)
    except AmcError as error:
        if method in TYPES:  # the float32 outputs are finite
            raise not_finite(type(model).__name__, method) from error
        raise
    labels, classifies = run.problem.splits.test().labels, run.problem.graph.classifies
    return {
        "method": method,
        "float_top1": top1(exact, labels) if classifies else None,
        "top1": top1(found, labels) if classifies else None,
        "likeness": likeness(found, exact),
    }


def _size(run: Run, settings: QuantizeSettings, made: Quantization) -> dict[str, float]:
    """Return the share of the float network's bits that was reached, under a limit on it; tell a miss.

    Other settings than those of the search store the weights otherwise, and so does what stays float.
    """
    if (limit := run.config.budget.size_ratio) is None:
        return {}
    problem, widths = run.problem, run.problem.graph.dense_widths
    if run.folder.model.exists():
        widths = run.widths_of(Strategy.load(run.folder.strategy))
    left = {each.name for each in made.left_float}
    bits = problem.exported_size.stored(settings, left)(widths)
    reached = bits / problem.original.float_size
    if reached > limit:
        print(f"quantize: size {reached:.4f}, over budget.size_ratio={limit:g}")
    return {"size_ratio": reached}


def _parts(made: Quantized) -> dict[str, Any]:
    description = made.description
    return {
        "placement": description.placement,
        "layers": len(description.layers),
        "activations": len(description.activations),
        "left_float": {each.name: each.reason for each in description.left_float},
        "settings": dict(description.settings),
        "sensitivity": [_row(each) for each in made.sensitivity],
        "notes": list(made.notes),
    }


def _row(each: Sensitivity) -> dict[str, Any]:
    return {
        "layer": each.layer,
        "weights": each.weights,
        "errors": {str(b): e for b, e in each.errors.items()},
    }


def _weights(made: Quantized) -> Iterator[str]:
    """Yield what is not usual of integer weights: bits other than 8, and inputs that share a scale."""
    layers = made.description.layers
    bits = sorted({each.bits for each in layers})
    if bits and bits != [8]:
        yield f"weights of {' and '.join(map(str, bits))} bits"
    if layers and (group := made.description.settings["group"]):
        inputs = [made.tensors[f"{each.name}.weight"][0].numel() for each in layers]
        fits = sum(count % group == 0 for count in inputs)
        where = "" if fits == len(layers) else f" in {fits} of {len(layers)} layers"
        yield f"a scale for {group} inputs{where}"


def _tell(facts: dict[str, Any], made: Quantized) -> None:
    count = (
        f"{facts['layers']} layers, {facts['activations']} activations" if facts["layers"] else "all layers"
    )
    if facts["top1"] is None:
        judged = f"likeness {facts['likeness']:.4f} to the float network"
    else:
        judged = f"{facts['top1']:.2f}% on the test images, {facts['float_top1']:.2f}% in float32"
    print(f"quantize: {', '.join([facts['method'], *_weights(made), count])}: {judged}")
    remarks = [f"{name} stays float: {reason}" for name, reason in facts["left_float"].items()]
    remarks += facts["notes"]
    if made.sensitivity:
        print("quantize: relative error of the outputs, with the weights of one layer alone rounded")
        print(aligned(sensitivity_rows(facts["sensitivity"])))
    for line in remarks[:_TOLD]:
        print(f"quantize: {line}")
    if len(remarks) > _TOLD:
        print(f"quantize: and {len(remarks) - _TOLD} more, in stages/quantize.json")
