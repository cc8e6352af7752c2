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
    """One GPU as sold: the mark that asks for it, its key, what NVML calls it and says it has.

    `memory_mib`: as public `nvidia-smi` output shows it. A detected GPU's own memory wins; this
    stands in where the user declares the part of a machine that cannot be asked.
    """

    mark: str
    key: str
    nvml_names: tuple[str, ...]
    memory_mib: int
    nvlink_c2c: bool = False


PARTS: tuple[Part, ...] = (
    Part("gh200", "NVIDIA-GH200-96GB", ("NVIDIA GH200 480GB", "NVIDIA GH200 120GB"), 97_871, nvlink_c2c=True),
    Part("gh200", "NVIDIA-GH200-144GB", ("NVIDIA GH200 144G HBM3e",), 146_831, nvlink_c2c=True),
    Part("h100", "NVIDIA-H100-80GB-HBM3", ("NVIDIA H100 80GB HBM3",), 81_559),
    Part("h100", "NVIDIA-H100-80GB-PCIe", ("NVIDIA H100 PCIe",), 81_559),
    Part("h100", "NVIDIA-H100-94GB-NVL", ("NVIDIA H100 NVL",), 95_830),
    Part("h200", "NVIDIA-H200", ("NVIDIA H200",), 143_771),
    Part("h200", "NVIDIA-H200-NVL", ("NVIDIA H200 NVL",), 143_771),
    Part("a100", "NVIDIA-A100-SXM4-40GB", ("NVIDIA A100-SXM4-40GB",), 40_960),
    Part("a100", "NVIDIA-A100-PCIE-40GB", ("NVIDIA A100-PCIE-40GB",), 40_960),
    Part("a100", "NVIDIA-A100-SXM4-80GB", ("NVIDIA A100-SXM4-80GB",), 81_920),
    Part("a100", "NVIDIA-A100-PCIE-80GB", ("NVIDIA A100 80GB PCIe",), 81_920),
    Part("l4", "NVIDIA-L4", ("NVIDIA L4",), 23_034),
    Part("l40s", "NVIDIA-L40S", ("NVIDIA L40S",), 46_068),
    Part("rtx4090", "NVIDIA-RTX-4090", ("NVIDIA GeForce RTX 4090",), 24_564),
    Part("b200", "NVIDIA-B200", ("NVIDIA B200",), 183_359),
    Part("gb200", "NVIDIA-GB200", ("NVIDIA GB200",), 189_471, nvlink_c2c=True),
)

MARKS: tuple[str, ...] = tuple(dict.fromkeys(part.mark for part in PARTS))
"""The parts' marks, each once, in the table's order."""

BY_NAME: dict[str, Part] = {name: part for part in PARTS for name in part.nvml_names}
BY_KEY: dict[str, Part] = {part.key: part for part in PARTS}
