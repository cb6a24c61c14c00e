"""Facts about this machine's CPU. Standard library only: a remote host runs this file as it is."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

_OF_ARM = ("CPU implementer", "CPU part")
_CPU0 = "/sys/devices/system/cpu/cpu0/cpufreq"
_TURBO = {  # file -> its content if the clock may boost
    "/sys/devices/system/cpu/intel_pstate/no_turbo": "0",
    "/sys/devices/system/cpu/cpufreq/boost": "1",
}


def cpu_model() -> str:
    """Return the CPU's marketing name as Linux or macOS reports it, else that of the board and its cores.

    Linux on ARM has no such name, or one that all processors of an architecture share. What is left is the
    type as ``platform`` reports it.
    """
    facts = _cpu_facts()
    named = next((value for key, value in facts if key == "model name"), "")
    if named and not named.startswith("ARMv"):
        return named
    board = (_read("/proc/device-tree/model") or "").strip("\0 \n")
    cores = dict.fromkeys(f"{key} {value}" for key, value in facts if key in _OF_ARM)
    found = ", ".join(filter(None, (board, *cores)))
    return found or named or _of_macos() or platform.processor() or platform.machine()


def _cpu_facts() -> list[tuple[str, str]]:
    """Return the keys and values that Linux tells of all cores, in order; none on other systems."""
    lines = [line.partition(":") for line in (_read("/proc/cpuinfo") or "").splitlines()]
    return [(key.strip(), value.strip()) for key, _, value in lines]


def _of_macos() -> str:
    """Return the CPU's marketing name as macOS reports it, empty on other systems."""
    if platform.system() != "Darwin":
        return ""
    asked = ["sysctl", "-n", "machdep.cpu.brand_string"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


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
