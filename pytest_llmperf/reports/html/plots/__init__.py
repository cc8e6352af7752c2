"""The plots of the report. Each draws what its arguments hold and computes no figure that a reader would quote."""

from pytest_llmperf.reports.html.plots.course import course
from pytest_llmperf.reports.html.plots.distributions import distributions
from pytest_llmperf.reports.html.plots.nights import nights
from pytest_llmperf.reports.html.plots.rounds import rounds
from pytest_llmperf.reports.html.plots.sweep import sweep

__all__ = ["course", "distributions", "nights", "rounds", "sweep"]
