"""What marks ask of the hardware: how they combine, when they are met, and what is said when not."""

from __future__ import annotations

import pytest

from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.hardware import Gpu, Hardware, Requirement, declared, requirement_of

MIB = 2**20
CAPABILITY = 'expected a version such as 9.0 or "9.0", which compilers call sm_90'
WORDS = "count, memory_gib, nvlink_c2c, compute_capability, nvlink"

GH200 = Gpu(name="NVIDIA GH200 480GB", memory_bytes=97871 * MIB, nvlink_c2c=True)
H100 = Gpu(name="NVIDIA H100 80GB HBM3", memory_bytes=81559 * MIB, nvlink_c2c=False)
H200 = Gpu(name="NVIDIA H200", memory_bytes=143771 * MIB, nvlink_c2c=False)
L4 = Gpu(name="NVIDIA L4", memory_bytes=23034 * MIB)
LINKED = Gpu(name="NVIDIA H100 80GB HBM3", memory_bytes=81559 * MIB, compute_capability=(9, 0), nvlinks=18)
ALONE = Gpu(name="NVIDIA L40S", memory_bytes=46068 * MIB, compute_capability=(8, 9), nvlinks=0)
SLICE = Gpu(name="NVIDIA A100-SXM4-40GB MIG 3g.20gb", memory_bytes=19968 * MIB, mig=True, gpu_uuid="GPU-0", nvlinks=0)
A100_MIG = Gpu(name="NVIDIA A100-SXM4-40GB", memory_bytes=40960 * MIB, mig=True)


def having(*gpus):
    return Hardware(gpus=gpus, problem=None if gpus else "NVML: Driver Not Loaded")


def gpu(*positional, **words):
    """The arguments of one `gpu` mark as pytest hands them over."""
    return positional, words


def test_no_mark_needs_nothing():
    """A test without marks runs anywhere."""
    assert requirement_of([], []).is_empty
    assert requirement_of([], []).unmet_by(having()) is None


def test_all_marks_combine():
    """A part's mark and several `gpu` marks make one requirement."""
    made = requirement_of(["gh200"], [gpu(count=2), gpu(memory_gib=90, nvlink_c2c=True)])

    assert made == Requirement(parts=("gh200",), count=2, memory_gib=90, nvlink_c2c=True)


def test_the_closest_mark_wins():
    """Of two `gpu` marks with the same word, the first given, the closer to the test, holds."""
    assert requirement_of([], [gpu(count=1), gpu(count=8, memory_gib=40)]) == Requirement(count=1, memory_gib=40)


def test_a_part_named_twice_counts_once():
    """A mark on a class and again on its method is one mark."""
    assert requirement_of(["h100", "h100"], []) == Requirement(parts=("h100",))


def test_a_gpu_mark_without_words_needs_some_gpu():
    """`@pytest.mark.gpu` alone asks for one GPU of any kind."""
    needed = requirement_of([], [gpu()])

    assert needed.unmet_by(having(L4)) is None
    assert needed.unmet_by(having()) == "needs 1 x GPU, found no GPU (NVML: Driver Not Loaded)"


@pytest.mark.parametrize(
    ("needed", "gpus"),
    [
        (Requirement(parts=("gh200",)), [GH200]),
        (Requirement(parts=("l4",)), [H200, L4]),
        (Requirement(count=2), [H200, L4]),
        (Requirement(count=2), [A100_MIG, A100_MIG]),
        (Requirement(memory_gib=80), [H100]),
        (Requirement(memory_gib=24), [Gpu(name="NVIDIA GeForce RTX 4090", memory_bytes=24564 * MIB)]),
        (Requirement(memory_gib=140), [L4, H200]),
        (Requirement(nvlink_c2c=True), [GH200]),
        (Requirement(compute_capability=(9, 0)), [LINKED]),
        (Requirement(compute_capability=(8, 9)), [LINKED]),
        (Requirement(compute_capability=(8, 9), nvlink=False), [LINKED, ALONE]),
        (Requirement(count=2, nvlink=True), [LINKED, ALONE, LINKED]),
        (Requirement(memory_gib=19.5), [SLICE]),
        (Requirement(count=2, nvlink=False), [SLICE, SLICE]),
        (Requirement(nvlink_c2c=False), [H200]),
        (Requirement(parts=("h200",), count=2, memory_gib=100, nvlink_c2c=False), [H200, L4, H200]),
    ],
    ids=str,
)
def test_hardware_that_has_all_of_it_meets_a_requirement(needed, gpus):
    """Enough GPUs that each have all that is asked for are enough, whatever else is there."""
    assert needed.unmet_by(having(*gpus)) is None


@pytest.mark.parametrize(
    ("needed", "gpus", "sentence"),
    [
        (
            Requirement(parts=("gh200",)),
            [H200],
            "needs 1 x GH200, found 1 x NVIDIA H200 (140 GiB)",
        ),
        (
            Requirement(parts=("h200",)),
            [GH200],
            "needs 1 x H200, found 1 x NVIDIA GH200 480GB (95.6 GiB)",
        ),
        (
            Requirement(parts=("a100",)),
            [A100_MIG],
            "needs 1 x A100, found 1 x NVIDIA A100-SXM4-40GB (40.0 GiB), MIG enabled",
        ),
        (
            Requirement(parts=("h100",), count=2),
            [H100, H200],
            "needs 2 x H100, found 1 x NVIDIA H100 80GB HBM3 (79.6 GiB), 1 x NVIDIA H200 (140 GiB)",
        ),
        (
            Requirement(parts=("h100", "h200")),
            [H100, H200],
            "needs 1 x H100 and H200, found 1 x NVIDIA H100 80GB HBM3 (79.6 GiB), 1 x NVIDIA H200 (140 GiB)",
        ),
        (
            Requirement(memory_gib=81),
            [H100],
            "needs 1 x GPU with 81 GiB, found 1 x NVIDIA H100 80GB HBM3 (79.6 GiB)",
        ),
        (
            Requirement(memory_gib=20),
            [A100_MIG],
            "needs 1 x GPU with 20 GiB, found 1 x NVIDIA A100-SXM4-40GB (40.0 GiB), MIG enabled",
        ),
        (
            Requirement(memory_gib=0.5),
            [Gpu(name="NVIDIA GB10")],
            "needs 1 x GPU with 0.5 GiB, found 1 x NVIDIA GB10",
        ),
        (
            Requirement(count=2, memory_gib=100, nvlink_c2c=True),
            [GH200, H200],
            "needs 2 x GPU with 100 GiB and NVLink-C2C, found 1 x NVIDIA GH200 480GB (95.6 GiB, "
            "NVLink-C2C), 1 x NVIDIA H200 (140 GiB, no NVLink-C2C)",
        ),
        (
            Requirement(compute_capability=(9, 0)),
            [ALONE],
            "needs 1 x GPU with compute capability 9.0, found 1 x NVIDIA L40S (45.0 GiB, compute capability 8.9)",
        ),
        (
            Requirement(compute_capability=(8, 0)),
            [L4],
            "needs 1 x GPU with compute capability 8.0, found 1 x NVIDIA L4 (22.5 GiB)",
        ),
        (
            Requirement(count=2, nvlink=True),
            [LINKED, ALONE],
            "needs 2 x GPU with NVLink, found 1 x NVIDIA H100 80GB HBM3 (79.6 GiB, NVLink), "
            "1 x NVIDIA L40S (45.0 GiB, no NVLink)",
        ),
        (
            Requirement(nvlink=False),
            [L4],
            "needs 1 x GPU with no NVLink, found 1 x NVIDIA L4 (22.5 GiB)",
        ),
        (
            Requirement(parts=("a100",)),
            [SLICE],
            "needs 1 x A100, found 1 x NVIDIA A100-SXM4-40GB MIG 3g.20gb (19.5 GiB)",
        ),
        (
            Requirement(memory_gib=20),
            [SLICE],
            "needs 1 x GPU with 20 GiB, found 1 x NVIDIA A100-SXM4-40GB MIG 3g.20gb (19.5 GiB)",
        ),
        (
            Requirement(nvlink_c2c=True),
            [L4],
            "needs 1 x GPU with NVLink-C2C, found 1 x NVIDIA L4 (22.5 GiB)",
        ),
        (
            Requirement(nvlink_c2c=False),
            [GH200],
            "needs 1 x GPU with no NVLink-C2C, found 1 x NVIDIA GH200 480GB (95.6 GiB, NVLink-C2C)",
        ),
        (
            Requirement(parts=("l4",)),
            [],
            "needs 1 x L4, found no GPU (NVML: Driver Not Loaded)",
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, Requirement) else "",
)
def test_a_requirement_that_is_not_met_says_what_was_needed_and_found(needed, gpus, sentence):
    """The sentence names all that was asked for and every GPU, and does not contradict itself."""
    assert needed.unmet_by(having(*gpus)) == sentence


def test_hardware_without_a_stated_problem_has_no_gpu():
    """Where nothing says why there is no GPU, none is made up."""
    assert Requirement(count=1).unmet_by(Hardware()) == "needs 1 x GPU, found no GPU"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ({"count": 0}, "gpu(count=0): expected a whole number of at least 1"),
        ({"count": -1}, "gpu(count=-1): expected a whole number of at least 1"),
        ({"count": 1.5}, "gpu(count=1.5): expected a whole number of at least 1"),
        ({"count": True}, "gpu(count=True): expected a whole number of at least 1"),
        ({"count": None}, "gpu(count=None): expected a whole number of at least 1"),
        ({"memory_gib": "80"}, "gpu(memory_gib='80'): expected a positive number"),
        ({"memory_gib": 0}, "gpu(memory_gib=0): expected a positive number"),
        ({"memory_gib": True}, "gpu(memory_gib=True): expected a positive number"),
        ({"memory_gib": float("nan")}, "gpu(memory_gib=nan): expected a positive number"),
        ({"nvlink_c2c": 1}, "gpu(nvlink_c2c=1): expected True or False"),
        ({"nvlink_c2c": None}, "gpu(nvlink_c2c=None): expected True or False"),
        ({"memory_gib": float("inf")}, "gpu(memory_gib=inf): expected a positive number"),
        ({"nvlink": "yes"}, "gpu(nvlink='yes'): expected True or False"),
        ({"compute_capability": True}, f"gpu(compute_capability=True): {CAPABILITY}"),
        ({"compute_capability": (9, 0)}, f"gpu(compute_capability=(9, 0)): {CAPABILITY}"),
        ({"compute_capability": 0}, f"gpu(compute_capability=0): {CAPABILITY}"),
        ({"compute_capability": -9.0}, f"gpu(compute_capability=-9.0): {CAPABILITY}"),
        ({"compute_capability": 8.95}, f"gpu(compute_capability=8.95): {CAPABILITY}"),
        ({"compute_capability": 90}, f"gpu(compute_capability=90): {CAPABILITY}"),
        ({"compute_capability": "90"}, f"gpu(compute_capability='90'): {CAPABILITY}"),
        ({"compute_capability": "sm_90"}, f"gpu(compute_capability='sm_90'): {CAPABILITY}"),
        ({"compute_capability": float("nan")}, f"gpu(compute_capability=nan): {CAPABILITY}"),
        ({"cout": 2}, f"gpu(cout=...): unknown word; accepted: {WORDS}"),
    ],
    ids=str,
)
def test_an_unusable_argument_is_an_error_that_says_what_is_expected(words, problem):
    """Each word of the `gpu` mark is checked before anything runs."""
    with pytest.raises(ConfigurationError) as caught:
        requirement_of([], [gpu(**words)])

    assert caught.value.problems == (problem,)


@pytest.mark.parametrize(
    ("given", "meant"),
    [(9.0, (9, 0)), ("9.0", (9, 0)), (9, (9, 0)), ("9", (9, 0)), (8.9, (8, 9)), (12.1, (12, 1)), ("10.3", (10, 3))],
)
def test_a_compute_capability_is_written_as_people_write_it(given, meant):
    """A number or a text, major and minor."""
    assert requirement_of([], [gpu(compute_capability=given)]).compute_capability == meant


@pytest.mark.parametrize(
    ("key", "is_linked"),
    [
        ("8x-NVIDIA-H100-80GB-HBM3", True),
        ("NVIDIA-H100-80GB-HBM3", False),
        ("2x-NVIDIA-L4", False),
        ("sim:2x-h100", True),
    ],
)
def test_several_of_a_declared_part_are_linked_as_the_part_is(key, is_linked):
    """Nobody can be asked whether the links are up."""
    assert (Requirement(nvlink=True).unmet_by(declared(key)) is None) is is_linked
    assert (Requirement(nvlink=False).unmet_by(declared(key)) is None) is not is_linked


def test_what_is_hidden_is_said_beside_what_was_found():
    """The GPU that is missing may be there."""
    found = Hardware(gpus=(H200,), notes=("CUDA_VISIBLE_DEVICES='0' hides 1 of 2 GPUs",))

    assert Requirement(count=2).unmet_by(found) == (
        "needs 2 x GPU, found 1 x NVIDIA H200 (140 GiB); CUDA_VISIBLE_DEVICES='0' hides 1 of 2 GPUs"
    )


def test_all_unusable_arguments_are_reported_together():
    """Every mistake of every mark is listed, not just the first."""
    with pytest.raises(ConfigurationError) as caught:
        requirement_of(
            ["h100"], [gpu(2, "h100"), gpu(count=0, memory=80), gpu(nvlink_c2c="yes", compute_capability="hopper")]
        )

    assert caught.value.problems == (
        "gpu(2, 'h100'): the gpu mark takes keywords only, such as gpu(count=2)",
        "gpu(count=0): expected a whole number of at least 1",
        f"gpu(memory=...): unknown word; accepted: {WORDS}",
        "gpu(nvlink_c2c='yes'): expected True or False",
        f"gpu(compute_capability='hopper'): {CAPABILITY}",
    )
