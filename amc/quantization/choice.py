"""Which layers of a network are quantized, as its settings say."""

from __future__ import annotations

from amc.errors import SettingError
from amc.quantization.description import FloatLayer
from amc.quantization.layers import has_plain_padding
from amc.quantization.program import Site
from amc.quantization.settings import QuantizeSettings
from amc.quantization.simulation import Program


def chosen(program: Program, settings: QuantizeSettings) -> tuple[list[Site], list[FloatLayer]]:
    """Split the layers into those to quantize and those that stay float.

    Layers that ``settings.tolerance`` leaves float are among the first: they are found by measuring.

    Raises:
        SettingError: an excluded layer does not exist.
    """
    left, sites = [*program.left_float], []
    used = {pattern for each in left for pattern in settings.excluding(each.name)}
    for site in program.sites:
        module = program.model.get_submodule(site.path)
        patterns = settings.excluding(site.name, *site.others)
        used.update(patterns)
        if patterns:
            left.append(FloatLayer(site.name, f"quantize.exclude={patterns[0]}"))
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
