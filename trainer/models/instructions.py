"""What a CPU has instructions for, without TensorFlow."""

from __future__ import annotations

import functools
from pathlib import Path

# What Linux calls the sets of instructions for the narrow precisions that oneDNN multiplies with: of x86, then of Arm.
_INSTRUCTIONS = {"bfloat16": {"avx512_bf16", "amx_bf16", "bf16"}, "float16": {"avx512_fp16", "amx_fp16", "asimdhp"}}


def cpu_multiplies(precision: str) -> bool:
    """Whether the CPU has instructions for products of this precision, a type's name; where the system does not tell, yes."""
    needed, flags = _INSTRUCTIONS.get(precision), cpu_flags()
    return needed is None or not flags or bool(flags & needed)


@functools.cache
def cpu_flags() -> frozenset[str]:
    """What the CPU has, as Linux tells; empty where it does not."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return frozenset(next((line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))), "").split())
