"""Facts about this machine's CPU. Standard library only: a remote host runs this file as it is."""

from __future__ import annotations

import platform
from pathlib import Path

_CPU0 = "/sys/devices/system/cpu/cpu0/cpufreq"
_TURBO = {  # file -> its content if the clock may boost
    "/sys/devices/system/cpu/intel_pstate/no_turbo": "0",
    "/sys/devices/system/cpu/cpufreq/boost": "1",
}


def cpu_model() -> str:
    """Return the CPU's marketing name as Linux reports it, else its type as ``platform`` reports it."""
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def clock_notes() -> list[str]:
    """Return facts about the CPU's frequency, a line each: the governor, the value, and the boost."""
    notes = [f"CPU governor: {_read(f'{_CPU0}/scaling_governor') or 'not readable'}"]
    if kilohertz := _read(f"{_CPU0}/scaling_cur_freq"):
        notes.append(f"CPU 0 at {int(kilohertz) / 1e6:.2f} GHz after the measurement")
    for file, boosting in _TURBO.items():
        if state := _read(file):
            notes.append(f"turbo {'on' if state == boosting else 'off'}")
    return notes


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
