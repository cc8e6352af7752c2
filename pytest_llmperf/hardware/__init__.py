"""What hardware this is: its key, its fingerprint, and whether it meets a test's marks."""

from pytest_llmperf.hardware.detect import Gpu, Hardware, declared, detect, remote, simulated, simulated_part
from pytest_llmperf.hardware.parts import MARKS, PARTS, Part, part_named
from pytest_llmperf.hardware.requirements import Requirement, requirement_of

__all__ = [
    "MARKS",
    "PARTS",
    "Gpu",
    "Hardware",
    "Part",
    "Requirement",
    "declared",
    "detect",
    "part_named",
    "remote",
    "requirement_of",
    "simulated",
    "simulated_part",
]
