"""The HTML report."""

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from report_contents import HOSTILE, KEY, TEST, before, figures, finding, report, request, section

from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.reports.content import Section, typical
from pytest_llmperf.reports.html import page, svg
from pytest_llmperf.timeline import Gauge, timeline
from pytest_llmperf.verdicts import Judgement, Verdict

GOLDEN = Path(__file__).parent / "page.txt"
NEVER_CLOSED = {"meta", "link", "br", "hr", "img", "input", "wbr"}
RAW = {"script", "style"}


class Seen(HTMLParser):
    """What a browser would show, and whether every element is closed where it should be."""

    def __init__(self, document):
        super().__init__()
        self.open, self.lines, self.problems, self.elements = [], [], [], []
        self.feed(document)
        self.close()
        self.problems += self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in NEVER_CLOSED:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.problems.append(tag)

    def handle_data(self, data):
        text = " ".join(data.split())
        if self.elements and self.elements[-1][0] == "wbr" and self.lines:
            self.elements[-1] = ("wbr, read", {})
            self.lines[-1] += text
            return
        if text and not (RAW & set(self.open)) and not ("svg" in self.open and self.open[-1] == "text"):
            self.lines.append(text)

    @property
    def text(self):
        return "\n".join(self.lines)


@pytest.mark.slow
def test_the_page_as_a_whole():
    regressed = section(
        Verdict.REGRESSED,
        "perf_tests/test_it.py::test_slow",
        before=before(),
        differences=("version '0.31' -> '0.32'",),
        doubts=("eviction is unverified",),
        accepting=("pytest-llmperf baseline acknowledge KEY \\", "  test_slow --metric ttft_p50"),
        timeline=timeline([request(k) for k in range(10)]),
    )
    seen = Seen(page(report(section(), regressed, commit="0123456789abcdef", environment={KEY: ("driver 1 -> 2",)})))

    shown = re.sub(r"pytest-llmperf \d\S*", "pytest-llmperf VERSION", seen.text)
    assert f"{shown}\n" == GOLDEN.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "content",
    [
        report(),
        report(section()),
        report(section(figures={}, values={}, about={})),
        report(Section(name="t", test="t", hardware_key="k")),
        report(Section(name="t", test="t", hardware_key="k", invalid=("3 of 3 requests failed",))),
        report(section(timeline=timeline([request(0, ok=False), request(1, ok=False)]), figures={})),
        report(section(timeline=timeline([request(0)]), before=before())),
        report(section(values={}, judgement=None, figures={**figures(), "ttft": "none", "by_round": 7, "runs": [1]})),
        report(*(section(name=f"t.py::test_{k}") for k in range(3)), notes=("a file was left out",)),
    ],
    ids=["nothing", "one", "no figures", "not judged", "invalid", "only errors", "one request", "odd file", "notes"],
)
def test_every_report_is_one_sound_page_that_fetches_nothing(content):
    document = page(content)
    seen = Seen(document)

    assert seen.problems == []
    assert not re.search(r"(?:src|href)=\"(?!#)", document)
    assert "url(http" not in document
    assert "@import" not in document
    assert content.tally() in seen.text


@pytest.mark.slow
def test_names_of_elements_are_unique_and_references_meet_one():
    both = [section(name=f"t.py::test_{k}", timeline=timeline([request(0), request(1)])) for k in range(2)]

    seen = Seen(page(report(*both)))

    names = [attributes["id"] for _, attributes in seen.elements if "id" in attributes]
    referred = {
        target
        for _, attributes in seen.elements
        for value in attributes.values()
        for target in re.findall(r"^#(.+)$|url\(#(.+?)\)", value or "")
    }
    assert len(names) == len(set(names))
    assert {one or other for one, other in referred} <= set(names)


def test_every_plot_has_a_name_a_description_and_a_table():
    seen = Seen(page(report(section(before=before(), timeline=timeline([request(0), request(1)])))))

    plots = [attributes for tag, attributes in seen.elements if tag == "svg"]
    figures_shown = [tag for tag, _ in seen.elements if tag == "figure"]
    assert len(plots) == len(figures_shown) == 3  # distributions, rounds, the course
    assert all(plot["role"] == "img" for plot in plots)
    names = {attributes.get("id") for tag, attributes in seen.elements if tag in ("title", "desc")}
    assert all(set(plot["aria-labelledby"].split()) <= names for plot in plots)
    assert seen.text.count("As a table") == 3


def test_plots_take_their_colours_from_the_theme():
    document = page(report(section(before=before())))

    drawn = re.findall(r"<svg.*?</svg>", document, re.DOTALL)
    assert drawn
    assert all(not re.search(r"#[0-9a-f]{6}", plot) for plot in drawn)
    assert all("var(--now)" in plot for plot in drawn)
    assert all(ElementTree.fromstring(plot) is not None for plot in drawn)


def test_text_from_elsewhere_is_text():
    hostile = section(
        Verdict.REGRESSED,
        HOSTILE,
        test=HOSTILE,
        hardware_key=HOSTILE,
        doubts=(HOSTILE,),
        differences=(HOSTILE,),
        about={"model": HOSTILE},
        params={"rate": 1},
        figures={**figures(), "errors": {HOSTILE: 3}, "ceiling": {"assumptions": HOSTILE}},
        findings=(finding(verdict=Verdict.REGRESSED, note=HOSTILE),),
        timeline=timeline([request(0)]),
    )
    seen = Seen(
        page(report(hostile, source=HOSTILE, commit=HOSTILE, notes=(HOSTILE,), environment={HOSTILE: (HOSTILE,)}))
    )

    assert [tag for tag, _ in seen.elements].count("script") == 1
    assert seen.problems == []
    assert "<script>alert(1)</script> \\x1b[31m **b**" in seen.text
    assert "\x1b" not in seen.text
    assert "\u202e" not in seen.text


@pytest.mark.slow
def test_the_sweep_of_hostile_names_is_text():
    at = [section(name=f"{HOSTILE}[{n}]", test=f"{HOSTILE}[{n}]", params={"users": n, "p": HOSTILE}) for n in (1, 2, 3)]

    seen = Seen(page(report(*at)))

    assert [tag for tag, _ in seen.elements].count("script") == 1
    assert "Throughput over users" in seen.text


@pytest.mark.slow
def test_of_many_measurements_those_that_need_a_person_are_unfolded_and_first():
    many = [section(name=f"t.py::test_{k}") for k in range(9)]
    bad = section(Verdict.REGRESSED, "t.py::test_bad")

    document = page(report(*many, bad))

    assert document.count("<details open>") == 1
    assert document.index("test_bad") < document.index("test_0")


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_fifty_tests_stay_small():
    many = [section(name=f"t.py::test_{k}", before=before()) for k in range(50)]

    assert len(page(report(*many))) < 2_000_000


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_page_of_a_hundred_thousand_requests_is_no_larger_than_that_of_a_few():
    many = timeline(request(place, run=place // 20_000) for place in range(100_000))

    document = page(report(section(timeline=many)))

    assert many.requests == 100_000
    assert sum(course.bins for course in many.courses) <= 480
    assert len(document) < 200_000


@pytest.mark.slow
def test_what_was_sampled_beside_the_runs_is_drawn_under_the_same_axis():
    at_ns = [5_000_000 * k for k in range(60)]
    gauge = Gauge(label="SM clock", of="GPU 0", unit="MHz", at_ns=at_ns, values=[1980.0] * 60)

    plain = page(report(section(timeline=timeline([request(0), request(1)]))))
    sampled = page(report(section(timeline=timeline([request(0), request(1)], gauges=[gauge]))))

    assert "SM clock" in sampled
    assert "MHz" in sampled
    assert "SM clock" not in plain


@pytest.mark.slow
def test_the_same_content_gives_the_same_page():
    content = report(section(before=before(), timeline=timeline([request(0), request(1)])))

    assert page(content) == page(content)


def test_without_its_libraries_the_page_says_what_to_install(monkeypatch):
    monkeypatch.setattr(svg, "LIBRARIES", ("jinja2", "no_such_module"))

    with pytest.raises(ConfigurationError, match=r"needs no_such_module: pip install 'pytest-llmperf\[report\]'"):
        page(report())


def test_the_client_s_error_stands_beside_the_metric():
    shown = Seen(page(report(section()))).text

    assert "client's error, at most" in shown
    assert "200 us" in shown


def test_what_was_not_judged_shows_its_values():
    shown = Seen(page(report(section(judgement=None)))).text

    assert "1 not judged" in shown
    assert "120 ms" in shown


def test_an_advice_and_notes_are_shown_beside_the_numbers():
    judgement = Judgement(
        verdict=Verdict.INCONCLUSIVE,
        findings=(finding(verdict=Verdict.INCONCLUSIVE, note="12 runs would do"),),
        against="0001_main.json",
        doubts=("the engine differs: a -> b",),
        advice="raise --llmperf-runs",
    )

    shown = Seen(page(report(section(judgement=judgement)))).text

    assert "ttft_p50: 12 runs would do" in shown
    assert "Doubt: the engine differs: a -> b" in shown
    assert "What to do: raise --llmperf-runs" in shown
    assert TEST in shown


@pytest.mark.parametrize(
    ("values", "expected"), [((0.5, 0.5), 0.5), ((1.0, 4.0), 2.0), ((0.0,), 0.0), ((0.0, 4.0), 0.0)]
)
def test_a_share_of_nothing_has_a_level(values, expected):
    """A hit rate of 0 has no logarithm, and is a figure all the same."""
    assert expected == pytest.approx(typical(values))
