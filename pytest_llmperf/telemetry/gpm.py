"""What a GPU's performance monitoring (GPM) says of its links: from Hopper on, and of NVLink-C2C nothing else does.

GPM has no counters but rates between two of its samples. A rate times the time between them is bytes, and these are
added up here, so that a link is read like those that the driver counts.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from contextlib import suppress
from types import ModuleType
from typing import Any

from pytest_llmperf.clock import seconds_between

_MIB = 1 << 20
_RATES: dict[str, int] = {
    "pcie_tx_bytes": 20,
    "pcie_rx_bytes": 21,
    "nvlink_tx_bytes": 61,
    "nvlink_rx_bytes": 60,
    "c2c_tx_bytes": 100,
    "c2c_rx_bytes": 101,
}
"""GPM's metrics, in MiB/s, by the fields of `GpuSample` that they tell."""
LAG_S = 0.12
"""So long after something has passed a sample is sure to have it: NVIDIA renews samples every 100 ms."""


class LinkMeter:
    """The bytes that have passed over a GPU's links since it was first read. It holds memory of the driver's."""

    def __init__(self, nvml: ModuleType, handle: Any, names: Collection[str]) -> None:
        """`names`: the fields of `GpuSample` to tell. Raises NVML's error if the driver gives no memory for samples."""
        self._nvml = nvml
        self._handle = handle
        self._gone = (nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_RESET_REQUIRED)
        self._bytes = dict.fromkeys(names, 0.0)
        self._is_known = False
        """Which of them are offered."""
        self._at_ns: int | None = None
        self._answer = nvml.c_nvmlGpmMetricsGet_t()
        self._answer.version = nvml.NVML_GPM_METRICS_GET_VERSION
        self._samples: list[Any] = []
        """The earlier and the later; none once it is closed."""
        try:
            for _ in range(2):
                self._samples.append(nvml.nvmlGpmSampleAlloc())
        except nvml.NVMLError:
            self.close()
            raise

    @property
    def lag_s(self) -> float:
        """How long what has passed may take to be seen; 0 where nothing is told."""
        return LAG_S if self._samples else 0.0

    @property
    def has_begun(self) -> bool:
        """It counts, or it has found that there is nothing to count."""
        return self._at_ns is not None or not self._samples

    def read(self, at_ns: int) -> dict[str, int]:
        """Bytes by fields. Nothing the first time, too soon after the last time, or where the driver does not answer.

        What passes until it answers again is in what it then says. What it refuses from the beginning is not asked
        again. Raises NVML's error if the GPU is gone.
        """
        if not self._samples or (self._at_ns is not None and seconds_between(self._at_ns, at_ns) < LAG_S):
            return {}
        try:
            return self._first(at_ns) if self._at_ns is None else self._more(seconds_between(self._at_ns, at_ns), at_ns)
        except self._nvml.NVMLError as error:
            if error.value in self._gone:
                raise
            if not self._is_known:
                self.close()
            return {}

    def close(self) -> None:
        """Give the driver its memory back, within the session of NVML; what it does not take back is its own affair."""
        while self._samples:
            with suppress(self._nvml.NVMLError):
                self._nvml.nvmlGpmSampleFree(self._samples.pop())

    def _first(self, at_ns: int) -> dict[str, int]:
        self._nvml.nvmlGpmSampleGet(self._handle, self._samples[0])
        self._at_ns = at_ns
        return {}

    def _more(self, passed_s: float, at_ns: int) -> dict[str, int]:
        """Add what has passed since the last time."""
        self._nvml.nvmlGpmSampleGet(self._handle, self._samples[1])
        rates = self._rates()
        if not self._is_known:
            self._is_known = True
            self._bytes = dict.fromkeys(rates, 0.0)
            if not rates:
                self.close()
        if not rates or len(rates) < len(self._bytes):
            return {}
        for name, mib_per_s in rates.items():
            self._bytes[name] += mib_per_s * _MIB * passed_s
        self._samples.reverse()
        self._at_ns = at_ns
        return {name: round(count) for name, count in self._bytes.items()}

    def _rates(self) -> dict[str, float]:
        """MiB/s between the two samples, of the fields that have an answer."""
        self._answer.sample1, self._answer.sample2 = self._samples
        self._answer.numMetrics = len(self._bytes)
        for metric, name in zip(self._answer.metrics, self._bytes, strict=False):
            metric.metricId = _RATES[name]
        self._nvml.nvmlGpmMetricsGet(self._answer)
        answers = zip(self._bytes, self._answer.metrics, strict=False)
        return {name: metric.value for name, metric in answers if _is_rate(metric)}


def link_meter(nvml: ModuleType, handle: Any, names: Collection[str]) -> LinkMeter | None:
    """A meter of these fields; None where GPU, driver or binding have no GPM, or nothing is to be told.

    Raises NVML's error if the GPU is gone.
    """
    if not names:
        return None
    try:
        is_offered = nvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice
        return LinkMeter(nvml, handle, names) if is_offered else None
    except AttributeError:  # an older binding
        return None
    except nvml.NVMLError as error:
        if error.value in (nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_RESET_REQUIRED):
            raise
        return None


def _is_rate(metric: Any) -> bool:
    return metric.nvmlReturn == 0 and math.isfinite(metric.value) and metric.value >= 0
