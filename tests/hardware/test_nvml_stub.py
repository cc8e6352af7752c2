"""The stub of NVML answers the real binding's calls as it is scripted to, whatever the time."""

from __future__ import annotations

import pynvml
import pytest
from nvml import GPUS, LOST, MACHINES, NO_PERMISSION, error, over_time, ramp

GIB = 2**30


@pytest.fixture
def open_on(nvml_here):
    """`open_on("h200")`: the stub and the handle of the first GPU; NVML is shut down behind the test."""
    opened = []

    def make(*gpus, **lines):
        stub = nvml_here(*gpus, **lines)
        pynvml.nvmlInit()
        opened.append(stub)
        return stub, pynvml.nvmlDeviceGetHandleByIndex(0)

    yield make
    for stub in opened:
        while stub.open_sessions:
            pynvml.nvmlShutdown()


def fields_of(handle, *fields):
    """Each value by its own code: `(code, number)`."""
    values = pynvml.nvmlDeviceGetFieldValues(handle, list(fields))
    number = {pynvml.NVML_VALUE_TYPE_DOUBLE: "dVal", pynvml.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal"}
    return [(value.nvmlReturn, getattr(value.value, number.get(value.valueType, "ullVal"))) for value in values]


def test_time_stands_still_until_it_is_advanced(open_on):
    """Steps and ramps follow the seconds that a test lets pass."""
    gpu = {"temperature": over_time((0, 30), (5, 60), (10, error(LOST))), "power": ramp((0, 100), (10, 200))}
    stub, handle = open_on(gpu)

    seen = []
    for seconds in (0, 4, 1, 4):
        stub.advance(seconds)
        seen.append((pynvml.nvmlDeviceGetTemperatureV(handle, 0), pynvml.nvmlDeviceGetPowerUsage(handle)))
    stub.advance(1)

    assert seen == [(30, 100), (30, 140), (60, 150), (60, 190)]
    with pytest.raises(pynvml.NVMLError_GpuIsLost):
        pynvml.nvmlDeviceGetTemperature(handle, 0)
    assert pynvml.nvmlDeviceGetPowerUsage(handle) == 200
    assert stub.asked("temperature") == 5


def test_the_real_clock_counts_where_it_is_asked_for(open_on):
    """With `real_time` a ramp goes on by itself."""
    _, handle = open_on({"energy": ramp((0, 0), (1000, 1_000_000_000_000))}, real_time=True)

    first, second = (pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) for _ in range(2))

    assert 0 < first < second < 1_000_000_000_000


def test_a_gpu_is_lost_in_mid_run_and_the_others_are_not(open_on):
    """From that second on each call on it, and its handle, is an error."""
    stub, handle = open_on("lost in mid-run", "h200")
    other = pynvml.nvmlDeviceGetHandleByUUID("GPU-1")
    assert pynvml.nvmlDeviceGetPerformanceState(handle) == 0

    stub.advance(10)

    for call in (pynvml.nvmlDeviceGetPerformanceState, pynvml.nvmlDeviceGetUUID, pynvml.nvmlDeviceGetMemoryInfo):
        with pytest.raises(pynvml.NVMLError_GpuIsLost):
            call(handle)
    with pytest.raises(pynvml.NVMLError_GpuIsLost):
        pynvml.nvmlDeviceGetHandleByUUID("GPU-0")
    assert pynvml.nvmlDeviceGetPerformanceState(other) == 0


def test_memory_in_both_forms(open_on):
    """The first form counts what is reserved as used, the second one apart."""
    _, handle = open_on({"memory_mib": 4096, "memory_used_mib": 1024, "memory_reserved_mib": 512})

    first = pynvml.nvmlDeviceGetMemoryInfo(handle)
    second = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)

    assert (first.total, first.used, first.free) == (4 * GIB, 1.5 * GIB, 2.5 * GIB)
    assert (second.total, second.used, second.free, second.reserved) == (4 * GIB, GIB, 2.5 * GIB, GIB / 2)


def test_each_field_has_a_code_of_its_own(open_on):
    """A value that is absent or refused leaves the others as they are; a scope is part of the name."""
    fields = {"186": 55_000, "186/1": 80_000, "83": 2**40, "74": error(NO_PERMISSION)}
    _, handle = open_on({"fields": fields})

    assert fields_of(handle, 186, (186, 1), 83, 74, 185)[:3] == [(0, 55_000), (0, 80_000), (0, 2**40)]
    assert [code for code, _ in fields_of(handle, 74, 185)] == [NO_PERMISSION, pynvml.NVML_ERROR_NOT_SUPPORTED]


def test_fields_that_are_not_supported_at_all(open_on):
    """A part without field values refuses the call as a whole."""
    _, handle = open_on({"name": "NVIDIA GB10"})

    with pytest.raises(pynvml.NVMLError_NotSupported):
        pynvml.nvmlDeviceGetFieldValues(handle, [186])


def test_processes_come_and_go(open_on):
    """With their memory, or without it where the driver does not say."""
    there = [{"pid": 7, "memory_mib": 1024}, {"pid": 8, "memory_mib": None}]
    stub, handle = open_on({"processes": over_time((0, []), (1, there)), "graphics_processes": []})
    assert pynvml.nvmlDeviceGetComputeRunningProcesses(handle) == []

    stub.advance(1)

    found = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    assert [(process.pid, process.usedGpuMemory) for process in found] == [(7, GIB), (8, None)]
    assert pynvml.nvmlDeviceGetGraphicsRunningProcesses(handle) == []


def test_slices_are_found_through_their_gpu_and_by_their_uuid(open_on):
    """An index without a slice is not found, and the part of a slice is its GPU."""
    _, handle = open_on("a100 slices")
    slices = [pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index) for index in (0, 1, 3)]
    uuids = [pynvml.nvmlDeviceGetUUID(found) for found in slices]

    assert pynvml.nvmlDeviceGetMaxMigDeviceCount(handle) == 7
    assert pynvml.nvmlDeviceGetMigMode(handle) == [1, 1]
    assert [pynvml.nvmlDeviceGetGpuInstanceId(found) for found in slices] == [7, 8, 9]
    assert pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByUUID(uuids[2])).endswith("MIG 3g.20gb")
    assert pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(slices[0])) == "GPU-0"
    with pytest.raises(pynvml.NVMLError_NotFound):
        pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, 2)


def test_xid_errors_are_events(open_on):
    """Each is told once, when its second has come."""
    stub, handle = open_on({"xid": [[1, 79], [2, 48]]})
    events = pynvml.nvmlEventSetCreate()
    pynvml.nvmlDeviceRegisterEvents(handle, pynvml.nvmlEventTypeXidCriticalError, events)
    with pytest.raises(pynvml.NVMLError_Timeout):
        pynvml.nvmlEventSetWait(events, 0)

    stub.advance(2)

    assert [pynvml.nvmlEventSetWait(events, 0).eventData for _ in range(2)] == [79, 48]
    with pytest.raises(pynvml.NVMLError_Timeout):
        pynvml.nvmlEventSetWait(events, 0)
    pynvml.nvmlEventSetFree(events)


def test_settings_of_a_server_part(open_on):
    """Every once-only call has an answer in the binding's own form."""
    _, handle = open_on("gh200")
    info = pynvml.nvmlDeviceGetPciInfo(handle)

    assert (info.busId, info.busIdLegacy, info.domain, info.bus) == ("00000000:01:00.0", "0000:01:00.0", 0, 1)
    assert (info.pciDeviceId, info.pciSubSystemId) == (0x233010DE, 0x16C110DE)
    assert pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByPciBusId(info.busId)) == "GPU-0"
    assert pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) == 700_000
    assert pynvml.nvmlDeviceGetPowerManagementDefaultLimit(handle) == 700_000
    assert pynvml.nvmlDeviceGetPowerManagementLimitConstraints(handle) == [210_000, 700_000]
    assert pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM) == 1980
    assert pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM) == 2619
    assert pynvml.nvmlDeviceGetEccMode(handle) == [1, 1]
    assert pynvml.nvmlDeviceGetPersistenceMode(handle) == 1
    assert pynvml.nvmlDeviceGetComputeMode(handle) == 0
    assert pynvml.nvmlDeviceGetCurrPcieLinkGeneration(handle) == pynvml.nvmlDeviceGetMaxPcieLinkGeneration(handle) == 5
    assert pynvml.nvmlDeviceGetGpuMaxPcieLinkGeneration(handle) == 5
    assert pynvml.nvmlDeviceGetCurrPcieLinkWidth(handle) == pynvml.nvmlDeviceGetMaxPcieLinkWidth(handle) == 16
    assert list(pynvml.nvmlDeviceGetCpuAffinity(handle, 2)) == [0xFFFF, 0]
    assert list(pynvml.nvmlDeviceGetMemoryAffinity(handle, 1, pynvml.NVML_AFFINITY_SCOPE_NODE)) == [1]
    assert pynvml.nvmlDeviceGetNumaNodeId(handle) == 1
    assert pynvml.nvmlDeviceGetAddressingMode(handle) == pynvml.NVML_DEVICE_ADDRESSING_MODE_ATS
    assert pynvml.nvmlDeviceGetC2cModeInfoV(handle).isC2cEnabled == 1
    assert pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle) == 1
    assert pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle) == 1
    assert pynvml.nvmlDeviceGetUtilizationRates(handle).gpu == 0


def test_links_to_peers(open_on):
    """Each link has a state, those that are up have a version, and a number beyond the last is refused."""
    _, handle = open_on({"nvlinks": [1, 0], "nvlink_version": 4})

    assert [pynvml.nvmlDeviceGetNvLinkState(handle, link) for link in (0, 1)] == [1, 0]
    assert pynvml.nvmlDeviceGetNvLinkVersion(handle, 0) == 4
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        pynvml.nvmlDeviceGetNvLinkState(handle, 2)


def test_an_old_driver_lacks_the_late_functions(open_on):
    """They cannot be looked up, and the early ones answer."""
    _, handle = open_on("h200", library="old")

    assert pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle) == 1
    with pytest.raises(pynvml.NVMLError_FunctionNotFound):
        pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle)


def test_what_is_not_scripted_is_not_supported(open_on):
    """A GPU has what it is given, and nothing by default."""
    _, handle = open_on({"name": "NVIDIA GB10"})

    with pytest.raises(pynvml.NVMLError_NotSupported):
        pynvml.nvmlDeviceGetMemoryInfo(handle)


def test_every_machine_of_the_catalogue_is_made_of_known_gpus():
    """A name that is not in the table would only show where the machine is used."""
    assert {gpu for gpus in MACHINES.values() for gpu in gpus} <= GPUS.keys()
