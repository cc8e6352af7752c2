"""The GPUs that have a mark of their own.

Names are what NVML reports, read from the PCI table of NVIDIA/open-gpu-kernel-modules. They are
matched whole: "GH200" contains "H200", "NVIDIA H100" is a part of "NVIDIA H100 NVL", an SXM H100
does not say SXM, and "NVIDIA GH200 480GB" counts the CPU's memory. The key therefore stands here
and is not made from the name.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """One GPU as sold: the mark that asks for it, its key, and the names that NVML may give it."""

    mark: str
    key: str
    nvml_names: tuple[str, ...]


PARTS: tuple[Part, ...] = (
    Part("gh200", "NVIDIA-GH200-96GB", ("NVIDIA GH200 480GB", "NVIDIA GH200 120GB")),
    Part("gh200", "NVIDIA-GH200-144GB", ("NVIDIA GH200 144G HBM3e",)),
    Part("h100", "NVIDIA-H100-80GB-HBM3", ("NVIDIA H100 80GB HBM3",)),
    Part("h100", "NVIDIA-H100-80GB-PCIe", ("NVIDIA H100 PCIe",)),
    Part("h100", "NVIDIA-H100-94GB-NVL", ("NVIDIA H100 NVL",)),
    Part("h200", "NVIDIA-H200", ("NVIDIA H200",)),
    Part("h200", "NVIDIA-H200-NVL", ("NVIDIA H200 NVL",)),
    Part("a100", "NVIDIA-A100-SXM4-40GB", ("NVIDIA A100-SXM4-40GB",)),
    Part("a100", "NVIDIA-A100-PCIE-40GB", ("NVIDIA A100-PCIE-40GB",)),
    Part("a100", "NVIDIA-A100-SXM4-80GB", ("NVIDIA A100-SXM4-80GB",)),
    Part("a100", "NVIDIA-A100-PCIE-80GB", ("NVIDIA A100 80GB PCIe",)),
    Part("l4", "NVIDIA-L4", ("NVIDIA L4",)),
    Part("l40s", "NVIDIA-L40S", ("NVIDIA L40S",)),
    Part("rtx4090", "NVIDIA-RTX-4090", ("NVIDIA GeForce RTX 4090",)),
    Part("b200", "NVIDIA-B200", ("NVIDIA B200",)),
    Part("gb200", "NVIDIA-GB200", ("NVIDIA GB200",)),
)

MARKS: tuple[str, ...] = tuple(dict.fromkeys(part.mark for part in PARTS))
"""The parts' marks, each once, in the table's order."""

BY_NAME: dict[str, Part] = {name: part for part in PARTS for name in part.nvml_names}
BY_KEY: dict[str, Part] = {part.key: part for part in PARTS}
