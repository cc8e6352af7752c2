"""Pure statistics: a sample to a summary, two samples to a comparison, p-values to decisions.

Values to be compared are logarithms of run statistics, turned so that up is worse; an effect `d`
is reported as `exp(d) - 1`.
"""

from pytest_llmperf.stats.comparison import MANY_RUNS, POWER, Comparison, pooled_t
from pytest_llmperf.stats.knee import FEWEST_LOADS, knee
from pytest_llmperf.stats.looks import Looks
from pytest_llmperf.stats.multiple import Ranking, holm
from pytest_llmperf.stats.nights import KNOWN_NIGHTS, History, NightSpread, against_nights, assumed, shared_spread
from pytest_llmperf.stats.sample import Sample, Statistic

__all__ = [
    "FEWEST_LOADS",
    "KNOWN_NIGHTS",
    "MANY_RUNS",
    "POWER",
    "Comparison",
    "History",
    "Looks",
    "NightSpread",
    "Ranking",
    "Sample",
    "Statistic",
    "against_nights",
    "assumed",
    "holm",
    "knee",
    "pooled_t",
    "shared_spread",
]
