"""What accelerators can do, by their makers' figures. The planner and the monitor read the same table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Accelerator:
    """One device.

    device_name:       what of TensorFlow's name for it tells which it is
    memory:            bytes
    half, single:      FLOP/s of dense matrix products, summed up in float32: of float16 (and bfloat16), and of float32,
                       which is TF32 where the device has it, since TensorFlow uses it by default
    has_bfloat16:      whether its matrix units take bfloat16 (Ampere and later)
    memory_bandwidth:  bytes per second
    link:              NVLink or PCIe
    link_bandwidth:    bytes per second in one direction between devices of a node: half of what data sheets call NVLink's
    source:            where the figures stand
    """

    device_name: str
    memory: float
    half: float
    single: float
    has_bfloat16: bool
    memory_bandwidth: float
    link: str
    link_bandwidth: float
    source: str

    def peak(self, precision: Precision) -> float | None:
        """FLOP/s at best; None where the device has no matrix products of the precision."""
        if precision == "float32":
            return self.single
        return None if precision == "bfloat16" and not self.has_bfloat16 else self.half


# In each line: memory (GB), half and single precision (TFLOP/s), bfloat16, memory bandwidth (GB/s), link (GB/s).
ACCELERATORS: Mapping[str, Accelerator] = {
    name: Accelerator(device, memory * 1e9, half * 1e12, single * 1e12, brain, rate * 1e9, link, link_rate * 1e9, source)
    for name, device, memory, half, single, brain, rate, link, link_rate, source in (
        ("v100-16gb", "V100", 16, 125, 15.7, False, 900, "NVLink", 150, "data sheet of the V100 (SXM2)"),
        ("v100-32gb", "V100", 32, 125, 15.7, False, 900, "NVLink", 150, "data sheet of the V100 (SXM2)"),
        ("a100-40gb", "A100", 40, 312, 156, True, 1555, "NVLink", 300, "data sheet of the A100 (SXM)"),
        ("a100-80gb", "A100", 80, 312, 156, True, 2039, "NVLink", 300, "data sheet of the A100 80GB (SXM)"),
        ("h100", "H100", 80, 989, 494.5, True, 3350, "NVLink", 450, "data sheet of the H100 (SXM), without sparsity"),
        ("h100-pcie", "H100 PCIe", 80, 756, 378, True, 2000, "PCIe", 64, "data sheet of the H100 (PCIe), without sparsity"),
        ("h200", "H200", 141, 989, 494.5, True, 4800, "NVLink", 450, "data sheet of the H200 (SXM), without sparsity"),
        # 1,440 GB, 64 TB/s and 36 PFLOP/s (sparse) of the eight of a DGX; TF32 as the HGX's has it.
        ("b200", "B200", 180, 2250, 1100, True, 8000, "NVLink", 900, "data sheets of DGX and HGX B200, without sparsity"),
        ("l40s", "L40S", 48, 362, 183, True, 864, "PCIe", 32, "data sheet of the L40S"),
        ("l40", "L40", 48, 181, 90.5, True, 864, "PCIe", 32, "data sheet of the L40"),
        ("l4", "L4", 24, 121, 60, True, 300, "PCIe", 32, "data sheet of the L4, without sparsity"),
        ("t4", "T4", 16, 65, 8.1, False, 320, "PCIe", 16, "data sheet of the T4"),
        ("a10", "A10", 24, 125, 62.5, True, 600, "PCIe", 32, "data sheet of the A10"),
        # Amazon's own, with about half of the A10's matrix units.
        ("a10g", "A10G", 24, 70, 35, True, 600, "PCIe", 32, "data sheet of the A10G"),
        ("rtx-3090", "RTX 3090", 24, 71, 35.6, True, 936, "PCIe", 32, "data sheet of the RTX 3090 (GA102 paper)"),
        ("rtx-4090", "RTX 4090", 24, 165.2, 82.6, True, 1008, "PCIe", 32, "data sheet of the RTX 4090 (Ada paper)"),
    )
}
# Of a CPU nothing is known beforehand: all its figures are to be given.
CPU = "cpu"


def accelerator_of(device_name: str) -> Accelerator | None:
    """The one that TensorFlow calls so, such as "NVIDIA H100 80GB HBM3"; None where it is not known."""
    found = [each for each in ACCELERATORS.values() if each.device_name in device_name]
    return max(found, key=lambda each: len(each.device_name), default=None)
