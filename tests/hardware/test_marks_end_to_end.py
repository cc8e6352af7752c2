"""Hardware marks as a user meets them: whole pytest runs on machines that a stub of NVML makes up."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from nvml import GPUS, NO_PERMISSION, STEERING, error

from pytest_llmperf import hardware, plugin

# Of the plugins that are installed here, these runs need two; loading the rest takes longer than a run.
PLUGINS = ("-p", "pytest_benchmark.plugin", "-p", "pytest_llmperf.plugin")

TESTS = """
import pytest

def test_anywhere():
    pass

@pytest.mark.gh200
def test_gh200():
    pass

@pytest.mark.gpu
def test_any_gpu():
    pass

@pytest.mark.gpu(count=2)
def test_two():
    pass

@pytest.mark.gh200
class TestClass:
    @pytest.mark.gpu(count=2, memory_gib=90, nvlink_c2c=True)
    def test_combined(self):
        pass

@pytest.mark.parametrize("users", [1, pytest.param(2, marks=pytest.mark.h200)])
def test_parameter(users):
    pass

def test_fixture(gpu):
    print("key:", gpu.key, "problem:", gpu.problem)
"""

DOCTOR = "import sys; from pytest_llmperf.cli import main; sys.exit(main(['doctor', '--no-calibration']))"


@pytest.fixture
def run_on(pytester, monkeypatch):
    """`run_on(environment, *arguments)`: one pytest run of the tests above, or of `tests`."""

    def run(environment, *arguments, tests=TESTS):
        pytester.makepyfile(test_it=tests)
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
        for name in STEERING:
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return pytester.runpytest_subprocess(*PLUGINS, "-W", "error", "--strict-markers", "-rA", *arguments)

    return run


def doctor(environment):
    """What `pytest-llmperf doctor` prints there: the values of each fact, by its name."""
    outside = {name: value for name, value in os.environ.items() if name not in STEERING}
    done = subprocess.run(
        [sys.executable, "-c", DOCTOR], env=outside | environment, capture_output=True, text=True, check=True
    )
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    said = {}
    for name, value in re.findall(r"^(\S.{17})(.*(?:\n {18}.*)*)", done.stdout, re.MULTILINE):
        said.setdefault(name.strip(), []).append(" ".join(value.split()))
    return said


@pytest.mark.slow
def test_on_another_part_tests_skip_with_what_was_needed_and_found(machine, run_on):
    """On an H200, tests that want a GH200 or two GPUs skip with a reason; all others run."""
    result = run_on(machine("h200"))

    result.assert_outcomes(passed=5, skipped=3)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines_random(
        [
            "SKIPPED * needs 1 x GH200, found 1 x NVIDIA H200 (140 GiB)",
            "SKIPPED * needs 2 x GPU, found 1 x NVIDIA H200 (140 GiB)",
            "SKIPPED * needs 2 x GH200 with 90 GiB and NVLink-C2C, found 1 x NVIDIA H200 (140 GiB, no NVLink-C2C)",
            "key: NVIDIA-H200 problem: None",
            "PASSED test_it.py::test_anywhere",
            "PASSED test_it.py::test_any_gpu",
            "PASSED test_it.py::test_parameter[[]1]",
            "PASSED test_it.py::test_parameter[[]2]",
        ]
    )


@pytest.mark.slow
def test_on_the_part_tests_run(machine, run_on):
    """On two GH200, tests that want one, any two GPUs, or two with memory and link run; one for an H200 skips."""
    result = run_on(machine("gh200", "gh200"))

    result.assert_outcomes(passed=7, skipped=1)
    result.stdout.fnmatch_lines_random(
        [
            "SKIPPED * needs 1 x H200, found 2 x NVIDIA GH200 480GB (95.6 GiB)",
            "key: 2x-NVIDIA-GH200-96GB problem: None",
            "PASSED test_it.py::test_gh200",
            "PASSED test_it.py::TestClass::test_combined",
        ]
    )


@pytest.mark.slow
def test_without_a_driver_marked_tests_skip_and_the_run_is_green(no_driver, run_on):
    """`-m gh200` on a machine without a GPU says why each test was skipped, and exits with 0."""
    result = run_on(no_driver, "-m", "gh200")

    result.assert_outcomes(skipped=2, deselected=6)
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(
        ["SKIPPED * needs 1 x GH200, found no GPU (NVML: Shared Library Not Found; *)"],
    )


@pytest.mark.slow
def test_a_driver_that_is_not_loaded_is_told_in_the_reason(machine, run_on):
    """The reason of a skip passes on what NVML said."""
    result = run_on(machine("h200", init_error=9), "-k", "any_gpu or fixture")

    result.assert_outcomes(skipped=1, passed=1, deselected=6)
    result.stdout.fnmatch_lines_random(
        [
            "SKIPPED * needs 1 x GPU, found no GPU (NVML: Driver Not Loaded; load the driver*)",
            "key: CPU-* problem: NVML: Driver Not Loaded; load *",
        ]
    )


@pytest.mark.slow
def test_required_hardware_that_is_missing_fails_the_test(no_driver, run_on):
    """With --llmperf-require-hardware a test whose GPU is missing is a failure, not an error and not a skip."""
    result = run_on(no_driver, "--llmperf-require-hardware", "-k", "test_gh200 or anywhere")

    result.assert_outcomes(failed=1, passed=1, deselected=6)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "needs 1 x GH200, found no GPU (NVML: Shared Library Not Found; *) (--llmperf-require-hardware)",
            "FAILED test_it.py::test_gh200*",
        ]
    )


@pytest.mark.slow
def test_required_hardware_that_is_there_changes_nothing(machine, run_on):
    """With the ini twin of --llmperf-require-hardware and the GPU in place the tests run."""
    result = run_on(machine("gh200"), "-o", "llmperf_require_hardware=true", "-m", "gh200", "-k", "test_gh200")

    result.assert_outcomes(passed=1, deselected=7)


@pytest.mark.slow
def test_declared_hardware_takes_the_place_of_what_is_found(machine, run_on):
    """--llmperf-hardware names what the engine runs on; this machine's GPU no longer counts."""
    result = run_on(machine("h200"), "--llmperf-hardware", "2x-NVIDIA-GH200-96GB", "-k", "gh200 or two or parameter")

    result.stdout.fnmatch_lines_random(
        [
            "PASSED test_it.py::test_gh200",
            "PASSED test_it.py::test_two",
            "SKIPPED * needs 1 x H200, found 2 x NVIDIA GH200 480GB (95.6 GiB)",
        ]
    )


@pytest.mark.slow
def test_mistakes_in_marks_stop_the_run_before_any_test(no_driver, run_on):
    """Every unknown or unusable word of every `gpu` mark is named with its test, and nothing runs."""
    result = run_on(
        no_driver,
        tests="""
            import pytest

            @pytest.mark.gpu(cout=2)
            def test_typo():
                pass

            @pytest.mark.gpu(count=0)
            def test_zero():
                pass
        """,
    )

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.assert_outcomes()
    result.stderr.fnmatch_lines(
        [
            "ERROR: test_it.py::test_typo: gpu(cout=...): unknown word; accepted: count, memory_gib, nvlink_c2c, "
            "compute_capability, nvlink",
            "ERROR: test_it.py::test_zero: gpu(count=0): expected a whole number of at least 1",
        ]
    )


CONTRADICTION = """
import pytest

@pytest.mark.h200
@pytest.mark.l4
def test_both():
    pass

@pytest.mark.h200
def test_one():
    pass

def test_plain():
    pass
"""


@pytest.mark.slow
def test_two_parts_on_one_test_are_its_own_mistake(machine, run_on):
    """It fails with its name and what to do; the others run, and so does all where it is not selected."""
    result = run_on(machine("h200"), tests=CONTRADICTION)

    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(
        ["*_ test_both _*", "test_it.py::test_both is marked l4 and h200, and no GPU is both; parametrize the test *"]
    )
    run_on(machine("h200"), "-k", "not both", tests=CONTRADICTION).assert_outcomes(passed=2, deselected=1)


@pytest.mark.slow
def test_a_mistake_in_a_fixture_is_a_sentence(machine, run_on):
    """Where it was made, and none of our frames."""
    result = run_on(
        machine("h200"),
        tests="""
            import pytest

            @pytest.fixture
            def engine(llm_engine_factory):
                return llm_engine_factory("sim", model="llama-3.1-8b", part="h300")

            def test_it(engine):
                pass
        """,
    )

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["test_it.py:5: ConfigurationError: unknown part 'h300'; did you mean 'h200'?*"])
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*pytest_llmperf/*.py:*")


def test_a_run_without_marked_tests_asks_no_hardware(machine, run_on):
    """A session with none of our tests does not so much as import what could ask NVML."""
    result = run_on(
        machine("h200"),
        tests="""
            import sys

            def test_nothing_of_ours():
                assert not {"pynvml", "pytest_llmperf.hardware"} & sys.modules.keys()
        """,
    )

    result.assert_outcomes(passed=1)


@pytest.mark.slow
def test_every_mark_is_listed(pytester, monkeypatch):
    """`pytest --markers` shows each part's mark and the `gpu` mark with its words, wherever it is installed."""
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", raising=False)

    result = pytester.runpytest_subprocess("--markers")

    result.stdout.fnmatch_lines_random(
        [
            "@pytest.mark.gpu(count=N, memory_gib=N, nvlink_c2c=BOOL, compute_capability=N, nvlink=BOOL): *",
            *(f"@pytest.mark.{mark}: needs this GPU; skips where it is not" for mark in hardware.MARKS),
        ]
    )


def test_the_marks_that_are_registered_are_those_of_the_parts():
    """The plugin names the parts' marks once more, so as not to import the table; both lists agree."""
    assert plugin.PART_MARKS == hardware.MARKS


def test_the_doctor_says_what_the_machine_is(machine):
    """Key, GPUs, versions, the marks that are satisfied, and how each GPU is set."""
    found = doctor(machine("h200", "l4"))

    (cpu,) = found.pop("CPU")
    assert cpu.endswith(f"{len(os.sched_getaffinity(0))} usable")
    found.pop("advice", None)  # on how the machine under this test is set
    assert found == {
        "hardware key": ["NVIDIA-H200+NVIDIA-L4"],
        "GPUs": ["1 x NVIDIA H200 (140 GiB), 1 x NVIDIA L4 (22.5 GiB)"],
        "driver": ["570.133.20"],
        "CUDA": ["12.8"],
        "marks satisfied": ["h200, l4"],
        "GPU 0": [
            "GPU-0; PCI 00000000:01:00.0 233010DE 16C110DE; compute capability 9.0; PCIe generation 5 x16 of 5 x16; "
            "no NVLinks up; MIG off; ECC on; persistence on; power limit 700 W of 700 W; clocks up to 1980 MHz, "
            "memory 2619 MHz; NUMA node 0"
        ],
        "GPU 1": [
            "GPU-1; PCI 00000000:02:00.0 233010DE 16C110DE; compute capability 8.9; PCIe generation 4 x16 of 4 x16; "
            "no NVLinks up; ECC on; persistence on; power limit 72 W of 72 W; clocks up to 1980 MHz, memory 2619 MHz; "
            "NUMA node 0"
        ],
    }


def test_the_doctor_says_what_to_change(machine):
    """What is set badly, for which GPUs, and the command that mends it."""
    bad = GPUS["h100"] | {"persistence": 0, "power_limit": 500_000}

    found = doctor(machine("h100", bad, bad) | {"CUDA_VISIBLE_DEVICES": "1,2"})

    assert found["GPUs"] == ["2 x NVIDIA H100 80GB HBM3 (79.6 GiB)"]
    assert found["advice"][:3] == [
        "CUDA_VISIBLE_DEVICES='1,2' hides 1 of 3 GPUs; unset it to use all",
        "GPUs 1,2: persistence mode is off, so each first use waits for the driver; sudo nvidia-smi -i 1,2 -pm 1",
        "GPUs 1,2: its power limit is 500 W, 700 W by default; sudo nvidia-smi -i 1,2 -pl 700",
    ]


@pytest.mark.slow
def test_the_doctor_speaks_of_gpus_whose_use_it_may_not_see(machine):
    """What cannot be asked is not advised on, and takes nothing else with it."""
    gpu = {name: value for name, value in GPUS["l4"].items() if "memory" not in name} | {"persistence": 0}

    found = doctor(machine(gpu | {"processes": error(NO_PERMISSION), "graphics_processes": error(NO_PERMISSION)}))

    assert found["advice"][0].startswith("GPU 0: persistence mode is off")


@pytest.mark.slow
def test_the_doctor_says_why_there_is_no_gpu(no_driver):
    """Without a driver the reason stands where the GPUs would, and what is unknown is a dash."""
    found = doctor(no_driver)

    assert found["GPUs"] == ["no GPU (NVML: Shared Library Not Found; is NVIDIA's driver installed?)"]
    assert (found["driver"], found["CUDA"], found["marks satisfied"]) == (["-"], ["-"], ["none"])


@pytest.mark.slow
def test_hidden_gpus_are_told_in_the_reason(machine, run_on):
    """What CUDA_VISIBLE_DEVICES takes away is not there for a test, and the skip says so."""
    result = run_on(machine("gh200", "gh200") | {"CUDA_VISIBLE_DEVICES": "1,7"}, "-k", "two or test_gh200")

    result.assert_outcomes(passed=1, skipped=1, deselected=6)
    result.stdout.fnmatch_lines(
        [
            "SKIPPED * needs 2 x GPU, found 1 x NVIDIA GH200 480GB (95.6 GiB); CUDA_VISIBLE_DEVICES='1,7' names no GPU "
            "with '7', which hides all from there on; unset it to use all"
        ]
    )


@pytest.mark.slow
def test_no_visible_gpu_is_no_gpu(machine, run_on):
    """An empty variable is how one says that no GPU is to be used."""
    result = run_on(machine("h200") | {"CUDA_VISIBLE_DEVICES": ""}, "-k", "any_gpu or anywhere")

    result.assert_outcomes(passed=1, skipped=1, deselected=6)
    result.stdout.fnmatch_lines(
        ["SKIPPED * found no GPU (CUDA_VISIBLE_DEVICES='' hides 1 of 1 GPU; unset it to use all)"]
    )


@pytest.mark.slow
def test_links_and_capability_can_be_asked_for(machine, run_on):
    """The skip says what was asked and what is there instead."""
    result = run_on(
        machine("a100", "a100"),
        tests="""
            import pytest

            @pytest.mark.gpu(count=2, nvlink=True, compute_capability=8.0)
            def test_there(gpu):
                assert [found.nvlinks for found in gpu.gpus] == [12, 12]
                assert {found.compute_capability for found in gpu.gpus} == {(8, 0)}

            @pytest.mark.gpu(nvlink=False, compute_capability="9.0")
            def test_not_there():
                pass
        """,
    )

    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(
        [
            "SKIPPED * needs 1 x GPU with compute capability 9.0 and no NVLink, found 2 x NVIDIA A100-SXM4-40GB "
            "(40.0 GiB, compute capability 8.0, NVLink)"
        ]
    )
