from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from amc.errors import AmcError


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def one_line(call: Callable[[], object], *parts: str) -> None:
    with pytest.raises(AmcError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
