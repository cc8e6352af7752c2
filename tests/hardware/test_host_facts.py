"""How the operating system says that the machine is set."""

from __future__ import annotations

import pytest

from pytest_llmperf.hardware import host
from pytest_llmperf.hardware.host import Host, pci_numa_node, read_host


@pytest.fixture
def processors(tmp_path):
    """A folder like Linux's, with a governor for each processor."""

    def make(*governors):
        for number, governor in enumerate(governors):
            folder = tmp_path / f"cpu{number}" / "cpufreq"
            folder.mkdir(parents=True)
            folder.joinpath("scaling_governor").write_text(f"{governor}\n", encoding="utf-8")
        tmp_path.joinpath("cpuidle").mkdir()
        return tmp_path

    return make


def test_governors_and_swap_are_read(processors, tmp_path):
    """One governor for each processor, and what of the swap is not free."""
    memory = tmp_path / "meminfo"
    memory.write_text("MemTotal: 8 kB\nSwapCached: 1 kB\nSwapTotal:   2048 kB\nSwapFree:  1024 kB\n", encoding="utf-8")

    found = read_host(processors("powersave", "performance"), memory)

    assert found == Host(governors=("powersave", "performance"), swap_used_bytes=2**20)


@pytest.mark.parametrize("text", ["", "SwapTotal: 2048 kB\n", "SwapTotal: many kB\nSwapFree: 1 kB\n"])
def test_what_is_not_said_is_absent(tmp_path, text):
    """Containers and virtual machines show no governors, and other systems no such file."""
    memory = tmp_path / "meminfo"
    memory.write_text(text, encoding="utf-8")

    assert read_host(tmp_path, memory) == read_host(tmp_path, tmp_path / "none") == Host()


def test_a_machine_without_swap_uses_none(tmp_path):
    """That is known to be nothing, unlike what is not said."""
    memory = tmp_path / "meminfo"
    memory.write_text("SwapTotal:  0 kB\nSwapFree:  0 kB\n", encoding="utf-8")

    assert read_host(tmp_path, memory).swap_used_bytes == 0


def test_this_machine_can_be_read():
    """Whatever it says, it is no error."""
    assert isinstance(read_host(), Host)


@pytest.mark.parametrize(("text", "node"), [("1\n", 1), ("0\n", 0), ("-1\n", None), ("", None), (None, None)])
def test_the_memory_near_a_pci_device(tmp_path, monkeypatch, text, node):
    """By the kernel's folder of it, whose name has a shorter domain in small letters; -1 means none."""
    monkeypatch.setattr(host, "_DEVICES", tmp_path)
    folder = tmp_path / "0009:0a:00.0"
    folder.mkdir()
    if text is not None:
        folder.joinpath("numa_node").write_text(text, encoding="utf-8")

    assert pci_numa_node("00000009:0A:00.0") == node
