"""Which layers of a network are quantized, as its settings say."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from amc.errors import SettingError
from amc.quantization.description import FloatLayer
from amc.quantization.layers import has_plain_padding
from amc.quantization.program import GraphProgram, Site
from amc.quantization.settings import QuantizeSettings
from amc.quantization.simulation import Program

BATCH = 50
"""Images of a batch wherever a network runs on the calibration images: what it decides on may be a batch."""


@dataclass(frozen=True)
class Chosen:
    """The layers of a network, split into those to quantize and those that stay float.

    Attributes:
        sites: the first. Those that a tolerance leaves float are among them: they are found by measuring.
        left_float: the others, with the reason.
        bits: bits of the weights of each of ``sites``, by its name.
    """

    sites: list[Site]
    left_float: list[FloatLayer]
    bits: dict[str, int]


def chosen(program: Program, settings: QuantizeSettings, images: Tensor) -> Chosen:
    """Split the layers of a network, as its settings say.

    Args:
        program: the network.
        settings: what to quantize.
        images: (N, C, H, W), normalised; a layer that gets no input on them stays float.

    Raises:
        SettingError: an excluded layer does not exist.
    """
    left, sites = [*program.left_float], []
    ran = _ran(program, images)
    ends = {*ran[:1], *ran[-1:]}  # of the network, whatever stays float
    used = {pattern for each in left for pattern in settings.excluding(each.name)}
    for site in program.sites:
        module = program.model.get_submodule(site.path)
        patterns = settings.excluding(site.name, *site.others)
        used.update(patterns)
        if patterns:
            left.append(FloatLayer(site.name, f"quantize.exclude={patterns[0]}"))
        elif site.name not in ran:
            left.append(
                FloatLayer(site.name, "it does not run on the calibration images, or not as a module")
            )
        elif settings.form == "static_int8" and program.input_of(site) is None:
            left.append(FloatLayer(site.name, "it reads a tensor of the network itself, or none of float32"))
        elif settings.method == "dynamic_int8" and not has_plain_padding(module):
            left.append(FloatLayer(site.name, "its padding is not that of an integer convolution"))
        else:
            sites.append(site)
    if missing := [each for each in settings.exclude if each not in used]:
        names = ", ".join(site.name for site in program.sites[:3])
        raise SettingError(f"quantize.exclude has {missing[0]!r}, which is no layer; layers are {names}, ...")
    return Chosen(sites, left, {site.name: settings.bits_of(end=site.name in ends) for site in sites})


def _ran(program: Program, images: Tensor) -> list[str]:
    """Return the names of the layers that get an input on images, in the order of their calls.

    In a graph these are all, each once; else values decide, and a layer is named at each of its calls.
    """
    known, found = [site.name for site in program.sites], list[str]()
    if isinstance(program, GraphProgram):
        return known
    names = {program.input_of(site): site.name for site in program.sites}

    def note(name: str, values: Tensor) -> None:
        if values.numel():  # a layer may be called with none of the images
            found.append(names[name])

    for batch in images.split(BATCH):
        program.see(batch, known, note)
    return found
