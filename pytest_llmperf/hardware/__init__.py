"""What hardware this is: its key, its fingerprint, whether it meets a test's marks, what to change about it."""

from pytest_llmperf.hardware.advice import advise
from pytest_llmperf.hardware.detect import Hardware, declared, detect, remote, simulated, simulated_part
from pytest_llmperf.hardware.gpu import MOMENTARY, Gpu
from pytest_llmperf.hardware.host import Host, read_host
from pytest_llmperf.hardware.lock import DeviceLocks
from pytest_llmperf.hardware.nvml import Use, uses
from pytest_llmperf.hardware.parts import MARKS, PARTS, Part, part_named
from pytest_llmperf.hardware.requirements import Requirement, requirement_of

__all__ = [
    "MARKS",
    "MOMENTARY",
    "PARTS",
    "DeviceLocks",
    "Gpu",
    "Hardware",
    "Host",
    "Part",
    "Requirement",
    "Use",
    "advise",
    "declared",
    "detect",
    "part_named",
    "read_host",
    "remote",
    "requirement_of",
    "simulated",
    "simulated_part",
    "uses",
]
