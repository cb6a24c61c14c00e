"""The cost of a network at any widths: in closed form, and counted by fvcore as a check.

- ``closed_form.py``: multiply-adds, parameters and layer widths at any group widths.
- ``size.py``: bits of the weights in a file at any group widths.
- ``exported.py``: which of them are integers, as the settings of a quantization say.
- ``counted.py``: fvcore's count of the multiply-adds of a network.
- ``constant.py``: the multiply-adds outside of convolution and linear layers, as a constant.
"""

from amc.cost.closed_form import (
    BilinearCost,
    LayerWidths,
    layer_widths,
    macs_cost,
    params_cost,
)
from amc.cost.constant import with_other_macs
from amc.cost.counted import count_macs
from amc.cost.exported import ExportedSize, check_excluded
from amc.cost.size import Stored, size_cost

__all__ = [
    "BilinearCost",
    "ExportedSize",
    "LayerWidths",
    "Stored",
    "check_excluded",
    "count_macs",
    "layer_widths",
    "macs_cost",
    "params_cost",
    "size_cost",
    "with_other_macs",
]
