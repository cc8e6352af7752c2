"""The HTML report in a real browser: what it asks for, what it draws, how it is read, worked and printed."""

from __future__ import annotations

import os
import time
from importlib import resources

import pytest
from report_contents import HOSTILE, KEY, before, figures, finding, report, request, section

from pytest_llmperf.metrics import METRICS
from pytest_llmperf.reports.content import Section
from pytest_llmperf.reports.html import page
from pytest_llmperf.timeline import Gauge, timeline
from pytest_llmperf.verdicts import Judgement, Verdict

CHROMIUM = os.environ.get("LLMPERF_TEST_CHROMIUM")
if not os.environ.get("LLMPERF_TEST_REQUIRE_BROWSER"):
    pytest.importorskip("playwright", reason="playwright is not installed: pip install -e '.[browser]'")
    pytest.importorskip("axe_core_python", reason="axe is not installed: pip install -e '.[browser]'")
    if not CHROMIUM:
        pytest.skip("LLMPERF_TEST_CHROMIUM names no Chromium", allow_module_level=True)
import axe_core_python  # noqa: E402 - only where it is to be had
from playwright import sync_api  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
OPENS_IN_S = 2.0
READABLE = 4.5
"""The contrast that WCAG asks of text at level AA."""

DRAWN = """plot => {
  const marks = [...plot.querySelectorAll("path, use")].filter(mark => {
    const box = mark.getBoundingClientRect();
    return box.width + box.height > 1 && getComputedStyle(mark).stroke !== "none";
  });
  const frame = plot.getBoundingClientRect();
  const labels = [...plot.querySelectorAll("text")].map(text => [text.textContent, text.getBoundingClientRect()]);
  const meet = ([, a], [, b]) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3;
  const pairs = labels.flatMap((one, place) => labels.slice(place + 1).filter(other => meet(one, other))
    .map(other => `${one[0]} / ${other[0]}`));
  const outside = labels.filter(([, box]) => box.left < frame.left - 1 || box.right > frame.right + 1
    || box.top < frame.top - 1 || box.bottom > frame.bottom + 1).map(([text]) => text);
  return {marks: marks.length, labels: labels.length, pairs, outside, width: frame.width};
}"""

CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgb = colour => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, place) => sum + c * [0.2126, 0.7152, 0.0722][place], 0);
  const behind = one => {
    for (; one; one = one.parentElement) {
      const found = rgb(getComputedStyle(one).backgroundColor);
      if (found[3]) return found;
    }
    return [255, 255, 255, 255];
  };
  const found = {};
  const texts = "h1, h2, p, th, td, dt, dd, li, a, code, summary, button, .verdict, svg text";
  for (const one of document.querySelectorAll(texts)) {
    const style = getComputedStyle(one);
    const [a, b] = [light(rgb(one.tagName === "text" ? style.fill : style.color)), light(behind(one))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const name = one.tagName.toLowerCase() + (one.className.baseVal ?? (one.className && "." + one.className));
    found[name] = Math.min(found[name] ?? 99, contrast);
  }
  return found;
}"""


def sampled():
    """Four figures of each of two GPUs, beside two runs."""
    at_ns = [5_000_000 * k for k in range(60)]
    figures_of = {"SM clock": ("MHz", 1980.0), "power": ("W", 512.0), "memory": ("GiB", 71.0)}
    return [
        Gauge(label=label, of=f"GPU {gpu}", unit=unit, at_ns=at_ns, values=[level - gpu] * 60)
        for label, (unit, level) in figures_of.items()
        for gpu in range(2)
    ]


def judged(verdict, advice):
    judgement = Judgement(
        verdict=verdict, findings=(finding(verdict=verdict),), against="0001_main.json", advice=advice
    )
    few = timeline([request(place, run=place // 10) for place in range(20)], gauges=sampled())
    return section(judgement=judgement, name=f"t.py::test_{verdict}", before=before(), timeline=few)


def swept():
    return [section(name=f"t.py::test_at[{n}]", test=f"t.py::test_at[{n}]", params={"rate": n}) for n in (1, 2, 4)]


def hostile():
    return section(
        Verdict.REGRESSED,
        HOSTILE,
        test=HOSTILE,
        hardware_key=HOSTILE,
        doubts=(HOSTILE,),
        about={"model": 3 * HOSTILE},
        figures={**figures(), "errors": {HOSTILE: 3}},
        findings=(finding(verdict=Verdict.REGRESSED, note=HOSTILE),),
        timeline=timeline([request(place) for place in range(20)]),
    )


CONTENTS = {
    "nothing": report,
    "every kind of plot": lambda: report(judged(Verdict.REGRESSED, "look for it"), *swept(), environment={KEY: ("a",)}),
    "one run": lambda: report(section(values={METRICS["ttft_p50"]: (0.12,)}, timeline=timeline([request(0)]))),
    "no baseline": lambda: report(
        section(judgement=Judgement(verdict=Verdict.NO_BASELINE, advice="store this level")),
        Section(name="t", test="t", hardware_key="k"),
    ),
    "only errors": lambda: report(
        section(
            invalid=("20 of 20 requests failed: timeout",),
            values={METRICS["output_throughput"]: (0.0, 0.0)},
            figures={"requests": 20, "errors": {"timeout": 20}, "runs": [{}, {}]},
            timeline=timeline([request(place, ok=False) for place in range(20)]),
        )
    ),
    "hostile names": lambda: report(hostile(), source=HOSTILE, notes=(HOSTILE,)),
}


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM)
        yield launched
        launched.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a report; what the browser had to say, what it asked for and how long it took hang on the page."""
    contexts = []

    def open_(content, **words):
        path = tmp_path / "report.html"
        path.write_text(content if isinstance(content, str) else page(content), encoding="utf-8")
        contexts.append(browser.new_context(viewport={"width": 1200, "height": 900}, **words))
        shown = contexts[-1].new_page()
        shown.said, shown.asked = [], []
        shown.on("console", lambda message: shown.said.append(message.text))
        shown.on("pageerror", lambda error: shown.said.append(str(error)))
        shown.on("request", lambda asked: shown.asked.append(asked.url))
        start = time.perf_counter()
        shown.goto(path.as_uri())
        shown.took_s = time.perf_counter() - start
        return shown

    yield open_
    for context in contexts:
        context.close()


@pytest.mark.parametrize("name", CONTENTS)
def test_it_opens_in_silence_and_draws_every_plot(name, opened):
    """No message in the console, no request but for the page, and plots with marks and labels that do not meet."""
    shown = opened(CONTENTS[name]())
    shown.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")

    assert shown.said == []
    assert len(shown.asked) == 1
    plots = shown.locator("svg.plot").all()
    assert bool(plots) == (name != "nothing")
    for plot in plots:
        drawn = plot.evaluate(DRAWN)
        assert drawn["marks"] >= 3
        assert drawn["labels"] >= 3
        assert drawn["width"] > 600
        assert drawn["pairs"] == []
        assert drawn["outside"] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["every kind of plot", "only errors"])
def test_all_text_stands_out_from_what_is_behind_it(name, scheme, opened):
    """In both themes, labels of plots included."""
    shown = opened(CONTENTS[name](), color_scheme=scheme)

    contrasts = shown.evaluate(CONTRASTS)

    assert "text" in contrasts
    assert {one: round(value, 2) for one, value in contrasts.items() if value < READABLE} == {}


def test_the_button_changes_the_theme(opened):
    shown = opened(CONTENTS["one run"](), color_scheme="dark")
    paper = "getComputedStyle(document.body).backgroundColor"
    dark = shown.evaluate(paper)

    shown.get_by_role("button", name="Dark or light").click()

    assert shown.evaluate(paper) == "rgb(255, 255, 255)" != dark


def test_the_keyboard_reaches_everything_and_shows_where_it_is(opened):
    """The way past the top, the buttons, the table's headings and links, what can be unfolded."""
    shown = opened(CONTENTS["every kind of plot"]())
    shown.keyboard.press("Tab")
    assert shown.evaluate("document.activeElement.textContent") == "Skip to the verdicts"
    assert shown.locator(".skip").bounding_box()["y"] >= 0

    stops = []
    while True:
        shown.keyboard.press("Tab")
        stop = shown.evaluate(
            "(one => one === document.body ? null : [one.tagName, one.textContent.trim(),"
            " getComputedStyle(one).outlineStyle])(document.activeElement)"
        )
        if stop is None or len(stops) > 200:
            break
        stops.append(stop)

    texts = [text for _, text, _ in stops]
    assert texts[:4] == ["Fold all", "Dark or light", "verdict", "measurement"]
    assert {"A", "BUTTON", "SUMMARY"} <= {tag for tag, _, _ in stops}
    assert texts.count("As a table") == shown.locator("svg.plot").count()
    assert [text for _, text, outline in stops if outline == "none"] == []


def test_the_skip_link_leads_past_the_top(opened):
    shown = opened(CONTENTS["every kind of plot"]())

    shown.keyboard.press("Tab")
    shown.keyboard.press("Enter")
    shown.keyboard.press("Tab")

    assert shown.evaluate("document.activeElement.closest('#verdicts') !== null")


def many():
    """So many that only what needs a person is unfolded."""
    green = [section(name=f"t.py::test_{place}", figures={}) for place in range(8)]
    return report(*green, section(Verdict.REGRESSED, "t.py::test_bad", figures={}))


def test_measurements_are_unfolded_by_key_by_link_and_all_at_once(opened):
    shown = opened(many())
    unfolded = shown.locator(".measurement > details[open]")
    assert unfolded.count() == 1

    shown.locator(".measurement > details > summary").nth(1).press("Enter")
    assert unfolded.count() == 2
    shown.get_by_role("link", name="test_7").click()
    shown.wait_for_function("document.querySelectorAll('.measurement > details[open]').length === 3")
    shown.get_by_role("button", name="Unfold all").click()
    assert unfolded.count() == 9
    shown.get_by_role("button", name="Fold all", exact=True).click()
    assert unfolded.count() == 0


def test_the_verdicts_are_sorted_by_a_heading(opened):
    shown = opened(many())
    names = shown.locator(".overview tbody th")
    assert names.first.inner_text() == "t.py::test_bad"

    shown.get_by_role("button", name="measurement").click()

    assert names.all_inner_texts() == [*(f"t.py::test_{place}" for place in range(8)), "t.py::test_bad"]
    assert shown.locator("[aria-sort=ascending]").inner_text() == "measurement"


def test_on_paper_it_is_light_and_nothing_is_folded(opened):
    """Whatever theme was chosen on the screen."""
    shown = opened(many(), color_scheme="dark")
    shown.evaluate("document.documentElement.dataset.theme = 'dark'")
    shown.emulate_media(media="print")
    assert shown.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    shown.emulate_media(media="screen")

    shown.evaluate(
        "addEventListener('beforeprint', () => {"
        " window.printed = document.querySelectorAll('.measurement > details[open]').length; })"
    )
    assert shown.pdf().startswith(b"%PDF")

    assert shown.evaluate("window.printed") == 9
    assert shown.locator(".measurement > details[open]").count() == 1


def test_it_fits_a_narrow_window(opened):
    """Wide tables and plots scroll by themselves, and the keyboard reaches them."""
    shown = opened(CONTENTS["every kind of plot"]())
    shown.set_viewport_size({"width": 400, "height": 800})
    shown.wait_for_function("document.querySelector('.scroll[tabindex]') !== null")

    assert shown.evaluate("document.documentElement.scrollWidth") <= 400


@pytest.mark.parametrize("name", CONTENTS)
def test_axe_finds_nothing(name, opened):
    """Names, roles, landmarks, order of headings, contrast."""
    shown = opened(CONTENTS[name](), bypass_csp=True)
    shown.evaluate(resources.files(axe_core_python).joinpath("axe.min.js").read_text(encoding="utf-8"))

    shown.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    shown.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    found = shown.evaluate("axe.run()")

    assert [(one["id"], one["nodes"][0]["html"]) for one in found["violations"]] == []


def test_a_hundred_thousand_requests_open_at_once(opened):
    requests = timeline(request(place, run=place // 20_000) for place in range(100_000))
    shown = opened(page(report(section(timeline=requests, before=before()))))

    assert requests.requests == 100_000
    assert shown.took_s < OPENS_IN_S


def test_fifty_measurements_open_at_once(opened):
    few = timeline([request(place) for place in range(20)])
    shown = opened(page(report(*(section(name=f"t.py::test_{k}", before=before(), timeline=few) for k in range(50)))))

    assert shown.locator("svg.plot").count() == 150
    assert shown.took_s < OPENS_IN_S
