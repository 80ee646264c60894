"""Finds the device that an engine runs on."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

from analysis.core.errors import EngineError

_TOPOLOGY = Path("/sys/class/kfd/kfd/topology/nodes")


def hip_runtime_found() -> bool:
    """Return whether the HIP runtime of shortfin's `amdgpu` can be loaded."""
    try:
        ctypes.CDLL("libamdhip64.so")
    except OSError:
        return False
    return True


def gfx_targets(topology: Path = _TOPOLOGY) -> list[str]:
    """Return the gfx target of each GPU that the amdgpu kernel driver lists, in its order.

    The driver encodes gfx942 as 90402 (major, two digits minor, two digits stepping); the stepping
    is written in hexadecimal.
    """
    targets = []
    for properties in sorted(topology.glob("*/properties"), key=lambda p: int(p.parent.name)):
        for line in properties.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "gfx_target_version" and int(value):
                number = int(value)
                major, minor, stepping = number // 10000, number // 100 % 100, number % 100
                targets.append(f"gfx{major}{minor:x}{stepping:x}")
    return targets


def resolve(device: str, hip_target: str | None, device_ids: Sequence[str] = ()) -> tuple[str, str]:
    """Return the device, with `auto` resolved, and its compilation target.

    Raises EngineError if `amdgpu` is requested but not available, or if `device_ids` are given for
    the CPU.
    """
    resolved, target = _resolve(device, hip_target)
    if device_ids and resolved == "local-task":
        raise EngineError(
            f"device_ids {list(device_ids)} are GPUs, but the engine runs on the CPU (local-task)"
            " here. Remove them."
        )
    return resolved, target


def _resolve(device: str, hip_target: str | None) -> tuple[str, str]:
    if device == "local-task":
        return device, "llvm-cpu"
    targets = gfx_targets()
    usable = hip_runtime_found() and bool(targets or hip_target)
    if device == "auto" and not usable:
        return "local-task", "llvm-cpu"
    if not hip_runtime_found():
        raise EngineError(
            "Device amdgpu needs the HIP runtime, but libamdhip64.so cannot be loaded. Install"
            " ROCm, or use the device local-task."
        )
    if not usable:
        raise EngineError(
            "Device amdgpu was requested, but the amdgpu kernel driver lists no GPU. Check its"
            " access rights, give a hip_target, or use the device local-task."
        )
    return "amdgpu", hip_target or targets[0]
