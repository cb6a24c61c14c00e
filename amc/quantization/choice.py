"""Which layers of a network are quantized, as its settings say."""

from __future__ import annotations

from torch import Tensor

from amc.errors import SettingError
from amc.quantization.description import FloatLayer
from amc.quantization.layers import has_plain_padding
from amc.quantization.program import GraphProgram, Site
from amc.quantization.settings import QuantizeSettings
from amc.quantization.simulation import Program

BATCH = 50
"""Images of a batch wherever a network runs on the calibration images: what it decides on may be a batch."""


def chosen(
    program: Program, settings: QuantizeSettings, images: Tensor
) -> tuple[list[Site], list[FloatLayer]]:
    """Split the layers into those to quantize and those that stay float.

    Layers that ``settings.tolerance`` leaves float are among the first: they are found by measuring.

    Args:
        program: the network.
        settings: what to quantize.
        images: (N, C, H, W), normalised; a layer that gets no input on them stays float.

    Raises:
        SettingError: an excluded layer does not exist.
    """
    left, sites = [*program.left_float], []
    ran = _ran(program, images)
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
    return sites, left


def _ran(program: Program, images: Tensor) -> set[str]:
    """Return the names of the layers that get an input on images: in a graph all, else what values decide."""
    known, found = {site.name for site in program.sites}, set[str]()
    if isinstance(program, GraphProgram):
        return known
    names = {program.input_of(site): site.name for site in program.sites}

    def note(name: str, values: Tensor) -> None:
        if values.numel():  # a layer may be called with none of the images
            found.add(names[name])

    for batch in images.split(BATCH):
        program.see(batch, known, note)
    return found
