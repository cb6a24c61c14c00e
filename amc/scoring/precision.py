"""Number formats that candidates run in; torch is imported where a format is used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from amc.errors import SettingError

if TYPE_CHECKING:
    import torch

PRECISIONS: Final = ("float32", "bfloat16")
AUTO: Final = "auto"


def dtype_of(precision: str) -> torch.dtype:
    """Return torch's type of one of ``PRECISIONS``."""
    import torch

    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]


def computes_bf16(device: torch.device) -> bool:
    """Return whether ``device`` has bfloat16 arithmetic: CUDA capability 8 and up, AVX512-BF16 or AMX.

    Other devices emulate bfloat16, which is slower than float32.
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, name, lambda: False)() for name in names)


def trains_in_bf16(precision: str, device: torch.device) -> bool:
    """Return whether a training of this ``precision`` (fp32, bf16 or auto) uses bfloat16 on ``device``."""
    return precision == "bf16" or (precision == AUTO and computes_bf16(device))


@contextmanager
def without_tf32() -> Iterator[None]:
    """Let convolutions on NVIDIA GPUs compute in float32 proper: TF32 rounds to 11 bits."""
    import torch

    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@contextmanager
def without_autocast() -> Iterator[None]:
    """Let layers compute in the types of their tensors, also where the caller works under ``torch.autocast``.

    A network that switches it on in its own forward pass still has it.
    """
    import torch

    with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        yield


def chosen_precision(name: str, device: torch.device) -> str:
    """Resolve ``auto``: bfloat16 on devices that have its arithmetic, float32 on others.

    Args:
        name: one of ``PRECISIONS``, which is returned unchanged, or ``auto``.
        device: the device that candidates run on.

    Raises:
        SettingError: unknown name.
    """
    check_precision(name)
    return name if name != AUTO else "bfloat16" if computes_bf16(device) else "float32"


def check_precision(name: str) -> None:
    """Check the name of a precision.

    Raises:
        SettingError: it is neither one of ``PRECISIONS`` nor ``auto``.
    """
    if name not in (*PRECISIONS, AUTO):
        raise SettingError(f"precision is {name!r}; expected one of {', '.join((*PRECISIONS, AUTO))}")
