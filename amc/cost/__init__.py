"""The cost of a network at any widths: in closed form, and counted by fvcore as a check.

- ``closed_form.py``: multiply-adds, parameters, bits in a file and layer widths at any group widths.
- ``exported.py``: bits of the weights in an exported file, as a quantization stores them.
- ``counted.py``: fvcore's count of the multiply-adds of a network.
- ``constant.py``: the multiply-adds outside of convolution and linear layers, as a constant.
"""

from amc.cost.closed_form import (
    BilinearCost,
    LayerWidths,
    Stored,
    layer_widths,
    macs_cost,
    params_cost,
    size_cost,
)
from amc.cost.constant import with_other_macs
from amc.cost.counted import count_macs
from amc.cost.exported import check_excluded, exported_size

__all__ = [
    "BilinearCost",
    "LayerWidths",
    "Stored",
    "check_excluded",
    "count_macs",
    "exported_size",
    "layer_widths",
    "macs_cost",
    "params_cost",
    "size_cost",
    "with_other_macs",
]
