"""What a report answers, as sentences and tables: what was gained, what it cost, which layers, what next.

All values come from the report, the dictionary that ``experiments.stages.report`` writes as ``report.json``.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from amc.budget.budget import KINDS
from amc.models.names import is_code
from experiments.report.text import MISSING, decimals, millions, number

Json = Mapping[str, Any]

NETWORKS = (("dense", "Dense"), ("pruned", "Pruned"), ("finetuned", "Fine-tuned"), ("quantized", "Quantized"))
"""Key of a network in a report, and its name."""
FEW_IMAGES = 1000
"""Test images below which the share of one of them is told."""


def networks(report: Json) -> list[tuple[str, Json]]:
    """Return the networks of a report with their names, in the order in which they were made."""
    return [(label, report[key]) for key, label in NETWORKS if key in report]


def gain(report: Json) -> str:
    """Return in words what became smaller: MACs, parameters, milliseconds with an interval, the file."""
    dense, sentences = report["dense"], []
    if (pruned := report.get("pruned")) is not None and "macs_ratio" in report:
        macs = f"{millions(dense['macs'])} → {millions(pruned['macs'])} million"
        params = pruned["params"] / dense["params"]
        sentences.append(
            f"The network needs {report['macs_ratio']:.1%} of its multiply-adds ({macs}) and "
            f"{params:.1%} of its parameters"
        )
    sentences += [
        f"{'quantized, ' if label == 'quantized' and pruned is not None else ''}{_timed(runtime, found)}"
        for runtime in report.get("latency", ())
        for label, found in timed(report, runtime)
    ]
    sentences += _shrunk(report)
    return "; ".join(sentences) + "." if sentences else ""


def timed(report: Json, runtime: Json) -> list[tuple[str, Json]]:
    """Return the comparisons of a runtime with the dense network, by the key of the other network.

    A quantized network stands beside the pruned one, and in its place where none was pruned.
    """
    found = [(smaller(report), runtime["comparison"])]
    if smaller(report) == "pruned" and "quantized" in report:
        found.append(("quantized", runtime.get("others", {}).get("quantized")))
    return [(label, own) for label, own in found if own is not None]


def _shrunk(report: Json) -> list[str]:
    """Return in words how large the files of the pruned and the quantized network are."""
    sizes, export, first = file_sizes(report), report.get("export") or {}, smaller(report)
    made = [first, *(["quantized"] if first == "pruned" and "quantized" in report else [])]
    if {"dense", first} <= sizes.keys():
        told = [f"its file shrinks from {kib(sizes['dense'])} to {kib(sizes[first])}"]
        return told + [f"quantized, to {kib(sizes[name])}" for name in made[1:] if name in sizes]
    written = {"pruned": export, "quantized": export.get("quantized") or {}}
    files = [(name, *written[name]["files"][:1]) for name in made if written[name].get("files")]
    return [
        f"{'quantized, ' if name != first else ''}its {file['format']} file has {kib(file['bytes'])}"
        for name, file in files
    ]


def file_sizes(report: Json) -> Json:
    """Return network -> bytes of its file, from the first runtime that runs the quantized network, if any."""
    rows = [own["file_bytes"] for own in report.get("latency", ()) if own.get("file_bytes")]
    return max(rows, key=lambda own: "quantized" in own, default={})


def quantized_speedups(runtimes: Sequence[Json]) -> dict[str, float]:
    """Return runtime -> speed-up of the quantized network, of the timings that have it."""
    timed = {own["backend"]: own.get("others", {}).get("quantized") for own in runtimes}
    return {name: found["speedup"] for name, found in timed.items() if found is not None}


def smaller(report: Json) -> str:
    """Return the key of the network that is timed beside the dense one: ``quantized`` if none was pruned."""
    return "quantized" if "quantized" in report and "pruned" not in report else "pruned"


def _timed(runtime: Json, found: Json) -> str:
    dense, pruned = found["dense"]["median_ms"], found["pruned"]["median_ms"]
    images = "an image" if runtime["batch"] == 1 else f"{runtime['batch']} images"
    within = interval_of_speedup(found)
    between = f" (95% interval {within[0]:.2f} to {within[1]:.2f})" if within else ""
    faster = "as fast" if found["speedup"] >= 1 else "as fast, so slower"
    return (
        f"{runtime['backend']} takes {number(pruned)} ms for {images} instead of {number(dense)} ms, "
        f"{found['speedup']:.2f} times {faster}{between}"
    )


def interval_of_speedup(found: Json) -> tuple[float, float] | None:
    """Return the 95% interval of the median speed-up over rounds, from their order; None of too few rounds.

    The k-th smallest and k-th largest ratios enclose the median unless fewer than k of them lie on one side
    of it, whatever the distribution.
    """
    from scipy import stats  # a second of CPU time, which other commands need not pay

    rounds = [found[side].get("samples_ms", ()) for side in ("dense", "pruned")]
    ratios = sorted(dense / pruned for dense, pruned in zip(*rounds, strict=True))
    rank = int(stats.binom.ppf(0.025, len(ratios), 0.5)) if ratios else 0
    return (ratios[rank - 1], ratios[-rank]) if rank >= 1 else None


def kib(size: float) -> str:
    """Return a number of bytes in KiB, or in MiB from 10 MiB on."""
    return f"{size / 2**20:.1f} MiB" if size >= 10 * 2**20 else f"{size / 2**10:.1f} KiB"


def change(network: Json, images: int | None) -> str:
    """Return the accuracy less the dense network's in points, with its 95% interval where it is known.

    The two networks answered the same images. Only those on which one alone is right make a difference; half
    an image is added to each side, as few images would give too narrow an interval (Agresti and Min 2005).

    Args:
        network: with ``lost`` and ``gained``, the images that only the dense network has right, or only this.
        images: number of test images.
    """
    if images is None or "lost" not in network:
        return MISSING
    lost, gained, total = network["lost"] + 0.5, network["gained"] + 0.5, images + 2
    middle = (gained - lost) / total
    half = 1.96 * math.sqrt(max(lost + gained - (gained - lost) ** 2 / total, 0)) / total
    value = 100 * (network["gained"] - network["lost"]) / images
    return f"{value:+.2f} [{100 * (middle - half):+.2f}, {100 * (middle + half):+.2f}]"


def results(report: Json) -> list[list[str]]:
    """Return the table of the networks, its head first."""
    found = networks(report)
    runtimes = list(dict.fromkeys(name for _, network in found for name in network.get("latency_ms", {})))
    images = report["dense"].get("images")
    changed = any("lost" in network for _, network in found)
    rows = [
        ["", "Top-1, %", *(["Change, points [95%]"] if changed else []), "MACs, M", "Parameters, M"]
        + [f"{name}, ms" for name in runtimes]
    ]
    for label, network in found:
        latency = network.get("latency_ms", {})
        less = [change(network, images)] if changed else []
        cost = [millions(network["macs"]), millions(network["params"])]
        times = [number(latency[name]) if name in latency else MISSING for name in runtimes]
        rows.append([label, decimals(network["top1"], missing=MISSING), *less, *cost, *times])
    return rows


def loss(report: Json) -> str:
    """Return in words what accuracy the last network has lost; empty for networks without accuracy."""
    (_, dense), *others = networks(report)
    label, last = others[-1]
    if None in (dense["top1"], last["top1"]):
        return ""
    images = dense.get("images")
    of = f" of the {images} test images" if images is not None else " of the test images"
    less = change(last, images)
    told = less if less != MISSING else f"{last['top1'] - dense['top1']:+.2f}"
    right = f"{label}, it is right on {last['top1']:.2f}%{of}"
    return f"{right}, the dense network on {dense['top1']:.2f}%: {told} points."


def warnings(report: Json) -> Iterator[str]:
    """Yield what a reader should know before the network is used."""
    if (warned := chosen_on_test(report)) is not None:
        yield warned
    for limit in filter(is_missed, report.get("limits", ())):
        yield (
            f"The limit on the {limit['kind']} is missed: {limit['reached']:.4%} of the dense network's, "
            f"{limit['ratio']:.4%} are allowed."
        )
    found = dict(networks(report))
    images = report["dense"].get("images")
    pruned, tuned = (found.get(name, {}).get("top1") for name in ("Pruned", "Fine-tuned"))
    if pruned is not None and tuned is not None and tuned < pruned:
        yield (
            f"Fine-tuning has made it worse on the test images, {pruned:.2f}% → {tuned:.2f}%: "
            "pruned.safetensors has the network before it."
        )
    if (report.get("finetune") or {}).get("kept") == "pruned":
        yield "Fine-tuning made the network worse on the search images: the one before it was kept."
    if images is not None and images < FEW_IMAGES and report["dense"]["top1"] is not None:
        yield f"There are {images} test images: one of them is {100 / images:.2f} points."
    if "proxies" in report and not report["proxies"].get("trusted", True):
        yield report["proxies"]["verdict"]
    export = report.get("export") or {}
    for name, reason in export.get("left_out", {}).items():
        yield f"No {name} file: {reason}"
    quantized = export.get("quantized") or {}
    for name, reason in quantized.get("left_out", {}).items():
        yield f"No {name} file of the quantized network: {reason}"
    for file in quantized.get("files", ()):
        if file.get("failure") is not None:
            yield f"{file['file']}: {file['failure']}"


def is_missed(limit: Json) -> bool:
    """Whether a limit of the budget, with its ``ratio`` and the share that was ``reached``, is exceeded."""
    return bool(limit["reached"] > limit["ratio"])


def chosen_on_test(report: Json) -> str | None:
    """Return what a search on test images means for their accuracies, or None."""
    if not (count := report.get("search_images_in_test")):
        return None
    return (
        f"{count} of the search images are test images: the network was chosen by them, so its accuracy on "
        "the test images is flattered."
    )


def convergence(episodes: Sequence[Json], search: Json) -> str:
    """Return in words where the best network was met, and whether the search was still improving.

    Args:
        episodes: all of the search.
        search: the record of the stage, whose ``best_episode`` may be one that unseen images have chosen.
    """
    counted = [own for own in episodes if own.get("phase") != "relaxed"]
    if not counted:
        return "No network within the budget was evaluated."
    if len(counted) < 2:
        return "One network was evaluated: this method does not search."
    best, at, improved = -math.inf, 0, 0
    for place, episode in enumerate(counted):
        if episode["return"] > best:
            best, at, improved = episode["return"], place, improved + 1
    since = len(counted) - 1 - at
    known = {tuple(own["widths"]) for own in counted if "widths" in own}
    repeats = f" {len(counted) - len(known)} of them repeated an earlier network." if known else ""
    judged = "it was still improving" if since < len(counted) / 5 else "it has probably converged"
    if at == 0:
        judged = "nothing that was tried is better than its start"
    head, chosen = f"best of {len(counted)} episodes is", ""
    if (taken := search.get("best_episode", counted[at]["episode"])) != counted[at]["episode"]:
        head = f"best return of {len(counted)} episodes is that of"
        chosen = f" Number {taken} was chosen{' on the unseen images' if 'held_out_best' in search else ''}."
    return (
        f"The {head} number {counted[at]['episode']}, the last of {improved} improvements, {since} episodes "
        f"before the end: {judged}.{chosen}{repeats}"
    )


def point_command(report: Json, point: Json) -> str:
    """Return the command that makes a network of the Pareto front, in a folder of its own."""
    folder, name = str(report["folder"]), str(point["strategy"])
    own = name.rpartition("/")[2].removesuffix(".json")
    replaced = (
        *("run_dir=", "stages=", "strategy=", "model.checkpoint=", "model.start=", "budget", "-m"),
        "finetune.until=",  # a given dense network may have been trained on the images that would judge
    )
    kept = [word for word in _words(report) if not word.startswith(replaced)]
    kind = own.partition("_")[0]
    ratio = math.ceil(1e4 * point[f"{kind}_ratio"]) / 1e4 if f"{kind}_ratio" in point else 1.0
    budget = [f"budget={kind}", f"budget.{kind}_ratio={ratio:g}"] if kind in ("macs", "params") else []
    if budget and any(word.lstrip("+").startswith("experiment=") for word in kept):
        # the limits of a recipe hold for the network that its search has chosen
        budget += [f"budget.{other}_ratio=null" for other in KINDS if other != kind]
    words = [
        *("amc", f"run_dir={folder}_{own}", f"strategy={folder}/{name}"),
        *(f"model.checkpoint={folder}/dense.safetensors", *kept, *budget),
        _stages(report, "train", "prune", "finetune"),
    ]
    return shlex.join(words)


def _stages(report: Json, *made: str) -> str:
    """Return the stages that make a network, and of it what the run has: integers, files, times, a report.

    A network that is made anew removes what was made of the one before. Integers are made for their files.
    """
    weights = bool({"prune", "finetune"} & set(made))
    again = {
        "quantize": "quantized" in report,
        "compare": weights and "compare" in report,
        "export": "quantize" in made or bool(report.get("export")),
        "benchmark": bool(report.get("latency")),
        "serve": weights and "serve" in report,
    }
    choice = {"search": ["search", "choose"]} if "choose" in report else {}
    names = [stage for name in made for stage in choice.get(name, [name])]
    names += [name for name, has in again.items() if has and name not in made]
    return f"stages=[{','.join([*names, 'report'])}]"


def _words(report: Json) -> list[str]:
    try:
        return shlex.split(str(report.get("provenance", {}).get("command", "")))[1:]
    except ValueError:  # a command with an odd quote
        return []


def points(report: Json, fronts: Json) -> list[tuple[str, str]]:
    """Return the networks of the Pareto front that have a strategy file; none if there are fewer than two.

    Each is what it costs and scores, and the command that makes it.
    """
    found = [
        point
        for cost in ("macs", "params")
        for point in fronts.get(cost, {}).get("return", ())
        if "strategy" in point
    ]
    if len({tuple(point["widths"]) for point in found}) < 2 or "folder" not in report:
        return []
    return [(_described(point), point_command(report, point)) for point in found]


def _described(point: Json) -> str:
    cost = f"{point['macs_ratio']:.1%} of the MACs, {point['params_ratio']:.1%} of the parameters"
    accuracy = "" if point["top1"] is None else f", {point['top1']:.2f}% in the search"
    return f"{point['strategy']}: {cost}{accuracy}"


def load_snippet(report: Json) -> str:
    """Return the lines of Python that load the final network; a dotted path is called by the user."""
    folder, model = str(report.get("folder", "RUN")), str(report.get("model", ""))
    how = "" if smaller(report) == "pruned" else ", quantized=True"
    if not is_code(model):
        return f"import amc\n\nnetwork = amc.load_pruned({folder!r}{how})"
    module, _, factory = model.replace(":", ".").rpartition(".")
    return (
        f"import amc\nfrom {module} import {factory}\n\n"
        f"network = amc.load_pruned({folder!r}, {factory}(){how})  # with the arguments of the dense network"
    )


def next_steps(report: Json, episodes: Sequence[Json]) -> list[str]:
    """Return what to do next, the most useful first, by rule."""
    folder = str(report.get("folder", "RUN"))
    again = shlex.join(["amc", f"run_dir={folder}"])
    # a search beside a strategy of a file that the folder remembers is refused
    own = " strategy=null" if any(word.startswith("strategy=") for word in _words(report)) else ""
    search, found = report.get("search") or {}, []
    counted = [own for own in episodes if own.get("phase") != "relaxed"]
    if "proxies" in report and not report["proxies"].get("trusted", True):
        found.append("The score of the search cannot be trusted here: agent=greedy takes one evaluation.")
    if "advice" in search:
        found.append(str(search["advice"]))
    if len(counted) >= 10:
        at = max(range(len(counted)), key=lambda place: (counted[place]["return"], -place))
        if len(counted) - 1 - at < len(counted) / 5:
            stages = _stages(report, "search", "prune", "finetune")
            found.append(
                f"The search was still improving: {again}{own} agent.episodes={2 * len(counted)} {stages} "
                "does not evaluate known networks again."
            )
    pruned, tuned = (report.get(name, {}).get("top1") for name in ("pruned", "finetuned"))
    if tuned is None and pruned is not None:
        found.append(f"Fine-tune it: {again} {_stages(report, 'finetune')}")
    elif tuned is not None and report["dense"]["top1"] - tuned > 1:
        epochs = (report.get("finetune") or {}).get("epochs", 10)
        longer = f"finetune.epochs={3 * epochs or 10} {_stages(report, 'finetune')}"
        found.append(f"Train it longer: {again} {longer}")
    if pruned is None:
        found.append(f"Prune it first: {again}{own} {_stages(report, 'search', 'prune', 'finetune')}")
    if "macs_ratio" in report and tuned is not None and report["dense"]["top1"] - tuned < 0.3:
        found.append(
            f"It has lost almost nothing: try budget.macs_ratio={report['macs_ratio'] / 2:.2g} in a new run."
        )
    if not report.get("speedup"):
        found.append(
            f"Measure it on your runtimes: {again} stages=[benchmark,report] latency.backends=[onnxruntime]"
        )
    if "quantized" not in report:
        found.append(f"Store it in integers: {again} {_stages(report, 'quantize')}")
    return found
