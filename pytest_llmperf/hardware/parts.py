"""The GPUs that have a mark of their own, and what each of them can do at best.

Names are what NVML reports, read from the PCI table of NVIDIA/open-gpu-kernel-modules. They are
matched whole: "GH200" contains "H200", "NVIDIA H100" is a part of "NVIDIA H100 NVL", an SXM H100
does not say SXM, and "NVIDIA GH200 480GB" counts the CPU's memory. The key therefore stands here
and is not made from the name.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

from pytest_llmperf.errors import ConfigurationError, unknown


class Figure(NamedTuple):
    """A number of a data sheet and where it was found."""

    value: float
    source: str


AICONFIGURATOR = "system file of aiconfigurator 0.12.0"
LLM_VIEWER = "hardware table of LLM-Viewer, commit 472f71f"
QUOTED = "commonly quoted, not checked at the vendor"
PCIE_GEN4 = Figure(32e9, "PCI Express 4.0 x16, 16 lanes of 2 GB/s")
PCIE_GEN5 = Figure(64e9, "PCI Express 5.0 x16, 16 lanes of 4 GB/s")
NVLINK_C2C = Figure(450e9, "half of NVLink-C2C's 900 GB/s, which counts both directions")
NVLINK_3 = Figure(300e9, "12 NVLink 3 of 25 GB/s per direction")
NVLINK_4 = Figure(450e9, "18 NVLink 4 of 25 GB/s per direction")
NVLINK_4_BRIDGE = Figure(300e9, f"12 NVLink 4 of 25 GB/s per direction, over a bridge; {QUOTED}")
NVLINK_5 = Figure(900e9, f"18 NVLink 5 of 50 GB/s per direction; {QUOTED}")
NVLINKS = (NVLINK_3, NVLINK_4, NVLINK_4_BRIDGE, NVLINK_5)


_FULL = Figure(1.0, "nothing else is known")


@dataclass(frozen=True, slots=True)
class Part:
    """One GPU as sold: the mark that asks for it, its keys, what NVML calls it and says it has.

    `name`: as in `sim:NAME`. `memory_mib`: as public `nvidia-smi` output shows it; a detected GPU's
    own memory wins. Rates are peaks: bytes/s, dense FLOP/s with FP32 accumulation, bytes/s per
    direction; None where there is no such thing.
    """

    mark: str
    name: str
    key: str
    nvml_names: tuple[str, ...]
    memory_mib: int
    compute_capability: tuple[int, int]
    _: KW_ONLY
    bandwidth: Figure
    """Of the device's memory."""
    flops_16bit: Figure
    """BF16 and FP16."""
    flops_fp8: Figure | None
    host_link: Figure
    """Between the device and the host's memory."""
    gpu_link: Figure
    """Between this GPU and its peers."""
    sustained: Figure = _FULL
    """The share of the peak FLOP/s that its power limit lets it keep up."""
    geforce: bool = False
    """Its tensor cores accumulate in FP32 at half their rate, and it does not read its peers' memory."""
    nvlink_c2c: bool = False


def _tera(value: float, source: str = AICONFIGURATOR) -> Figure:
    return Figure(value * 1e12, source)


_HOPPER, _AMPERE, _ADA, _BLACKWELL = (9, 0), (8, 0), (8, 9), (10, 0)

PARTS: tuple[Part, ...] = (
    Part(
        "gh200", "gh200", "NVIDIA-GH200-96GB", ("NVIDIA GH200 480GB", "NVIDIA GH200 120GB"), 97_871, _HOPPER,
        bandwidth=_tera(4.0, QUOTED), flops_16bit=_tera(989, QUOTED), flops_fp8=_tera(1979, QUOTED),
        host_link=NVLINK_C2C, gpu_link=NVLINK_4, nvlink_c2c=True,
    ),
    Part(
        "gh200", "gh200-144gb", "NVIDIA-GH200-144GB", ("NVIDIA GH200 144G HBM3e",), 146_831, _HOPPER,
        bandwidth=_tera(4.9, QUOTED), flops_16bit=_tera(989, QUOTED), flops_fp8=_tera(1979, QUOTED),
        host_link=NVLINK_C2C, gpu_link=NVLINK_4, nvlink_c2c=True,
    ),
    Part(
        "h100", "h100", "NVIDIA-H100-80GB-HBM3", ("NVIDIA H100 80GB HBM3",), 81_559, _HOPPER,
        bandwidth=_tera(3.35), flops_16bit=_tera(989), flops_fp8=_tera(1978), host_link=PCIE_GEN5, gpu_link=NVLINK_4,
    ),
    Part(
        "h100", "h100-pcie", "NVIDIA-H100-80GB-PCIe", ("NVIDIA H100 PCIe",), 81_559, _HOPPER,
        bandwidth=_tera(2.0), flops_16bit=_tera(756.5), flops_fp8=_tera(1513), host_link=PCIE_GEN5, gpu_link=PCIE_GEN5,
    ),
    Part(
        "h100", "h100-nvl", "NVIDIA-H100-94GB-NVL", ("NVIDIA H100 NVL",), 95_830, _HOPPER,
        bandwidth=_tera(3.9, QUOTED), flops_16bit=_tera(835, QUOTED), flops_fp8=_tera(1671, QUOTED),
        host_link=PCIE_GEN5, gpu_link=NVLINK_4_BRIDGE,
    ),
    Part(
        "h200", "h200", "NVIDIA-H200", ("NVIDIA H200",), 143_771, _HOPPER,
        bandwidth=_tera(4.8), flops_16bit=_tera(989), flops_fp8=_tera(1978), host_link=PCIE_GEN5, gpu_link=NVLINK_4,
    ),
    Part(
        "h200", "h200-nvl", "NVIDIA-H200-NVL", ("NVIDIA H200 NVL",), 143_771, _HOPPER,
        bandwidth=_tera(4.8), flops_16bit=_tera(835, QUOTED), flops_fp8=_tera(1671, QUOTED),
        host_link=PCIE_GEN5, gpu_link=NVLINK_4_BRIDGE,
    ),
    Part(
        "a100", "a100-40gb", "NVIDIA-A100-SXM4-40GB", ("NVIDIA A100-SXM4-40GB",), 40_960, _AMPERE,
        bandwidth=_tera(1.555, LLM_VIEWER), flops_16bit=_tera(312), flops_fp8=None,
        host_link=PCIE_GEN4, gpu_link=NVLINK_3,
    ),
    Part(
        "a100", "a100-40gb-pcie", "NVIDIA-A100-PCIE-40GB", ("NVIDIA A100-PCIE-40GB",), 40_960, _AMPERE,
        bandwidth=_tera(1.555, LLM_VIEWER), flops_16bit=_tera(312), flops_fp8=None,
        host_link=PCIE_GEN4, gpu_link=PCIE_GEN4,
    ),
    Part(
        "a100", "a100", "NVIDIA-A100-SXM4-80GB", ("NVIDIA A100-SXM4-80GB",), 81_920, _AMPERE,
        bandwidth=_tera(2.039), flops_16bit=_tera(312), flops_fp8=None, host_link=PCIE_GEN4, gpu_link=NVLINK_3,
    ),
    Part(
        "a100", "a100-pcie", "NVIDIA-A100-PCIE-80GB", ("NVIDIA A100 80GB PCIe",), 81_920, _AMPERE,
        bandwidth=_tera(1.935), flops_16bit=_tera(312), flops_fp8=None, host_link=PCIE_GEN4, gpu_link=PCIE_GEN4,
    ),
    Part(
        "l4", "l4", "NVIDIA-L4", ("NVIDIA L4",), 23_034, _ADA,
        bandwidth=_tera(0.300), flops_16bit=_tera(121), flops_fp8=_tera(242), host_link=PCIE_GEN4, gpu_link=PCIE_GEN4,
        sustained=Figure(0.5, "the peak counts at 2,040 MHz; the base clock at 72 W is 795 MHz (0.39); taken between"),
    ),
    Part(
        "l40s", "l40s", "NVIDIA-L40S", ("NVIDIA L40S",), 46_068, _ADA,
        bandwidth=_tera(0.864), flops_16bit=_tera(362.05), flops_fp8=_tera(733),
        host_link=PCIE_GEN4, gpu_link=PCIE_GEN4,
    ),
    Part(
        "rtx4090", "rtx4090", "NVIDIA-RTX-4090", ("NVIDIA GeForce RTX 4090",), 24_564, _ADA,
        bandwidth=_tera(1.008, QUOTED), flops_16bit=_tera(165, QUOTED), flops_fp8=_tera(330, QUOTED),
        host_link=PCIE_GEN4, gpu_link=PCIE_GEN4, geforce=True,
    ),
    Part(
        "b200", "b200", "NVIDIA-B200", ("NVIDIA B200",), 183_359, _BLACKWELL,
        bandwidth=_tera(7.7), flops_16bit=_tera(2250), flops_fp8=_tera(4500), host_link=PCIE_GEN5, gpu_link=NVLINK_5,
    ),
    Part(
        "gb200", "gb200", "NVIDIA-GB200", ("NVIDIA GB200",), 189_471, _BLACKWELL,
        bandwidth=_tera(8.0), flops_16bit=_tera(2500), flops_fp8=_tera(5000),
        host_link=Figure(225e9, f"half of a Grace's NVLink-C2C, which two GPUs share; {QUOTED}"), gpu_link=NVLINK_5,
        nvlink_c2c=True,
    ),
)  # fmt: skip

MARKS: tuple[str, ...] = tuple(dict.fromkeys(part.mark for part in PARTS))
"""The parts' marks, each once, in the table's order."""

BY_NVML_NAME: dict[str, Part] = {name: part for part in PARTS for name in part.nvml_names}
BY_KEY: dict[str, Part] = {part.key: part for part in PARTS}
BY_NAME: dict[str, Part] = {part.name: part for part in PARTS}


def part_named(name: str) -> Part:
    """The part of that name. Raises `ConfigurationError` for an unknown one."""
    try:
        return BY_NAME[name]
    except KeyError:
        raise ConfigurationError(unknown("part", name, BY_NAME)) from None
