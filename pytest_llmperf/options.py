"""The only reader of pytest options, ini settings and the environment.

Every option has an ini twin of the same name with underscores: `--llmperf-runs 5` on the command
line, `llmperf_runs = 5` in the configuration file. The command line wins.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llmperf import option_values
from pytest_llmperf.atomic import shared, unwritable
from pytest_llmperf.errors import ConfigurationError, unknown
from pytest_llmperf.option_values import Budget, GateMode
from pytest_llmperf.secret import Secret

if TYPE_CHECKING:
    import pytest


@dataclass(frozen=True, slots=True)
class Option:
    """One `--llmperf-<name>`. `kind`: text, flag (no value) or list (may be repeated)."""

    name: str
    help: str
    metavar: str | None = None
    kind: str = "text"
    choices: tuple[str, ...] | None = None

    @property
    def flag(self) -> str:
        return f"--llmperf-{self.name}"

    @property
    def key(self) -> str:
        return f"llmperf_{self.name.replace('-', '_')}"


LOCKS_VARIABLE = "LLMPERF_LOCKS"

OPTIONS = (
    Option("engine", "engine kind to use instead of the one in the llm_engine mark", "KIND"),
    Option("url", "measure the OpenAI-compatible server at URL (implies --llmperf-engine openai)", "URL"),
    Option("model", "model to use instead of the one in the llm_engine mark", "MODEL"),
    Option("set", "override one word of every engine specification, as in prefix_caching=false", "WORD=VALUE", "list"),
    Option(
        "hardware",
        "what the engine runs on, if it is not this machine: a key such as NVIDIA-GH200-96GB; sim:PART, such as "
        "sim:gh200, puts the simulated engine in place of every other",
        "KEY",
    ),
    Option("require-hardware", "fail, instead of skip, a test whose GPU is not there", kind="flag"),
    Option(
        "runs",
        "measured runs per test (default: 5); auto: as many as the verdict takes, looked at after 3, 5, 8, 12 and 20; "
        "auto:N or auto:Nmin: no more than N runs or N minutes for each measurement",
        "N|auto",
    ),
    Option("warmup-runs", "runs before them that are not measured (default: 1)", "N"),
    Option("baselines", "folder of stored results (default: baselines, below the root directory)", "DIR"),
    Option(
        "gate",
        "off: judge nothing; warn: only warn; fail: a regression fails its test, what could not be judged warns; "
        "strict: that fails, too (default: fail)",
        choices=tuple(mode.value for mode in GateMode),
    ),
    Option("alpha", "probability that a healthy build fails anywhere in a session (default: 0.01)", "P"),
    Option("nights", "how many stored nights a comparison takes, the newest (default: 30)", "N"),
    Option(
        "night-spread",
        "standard deviation by which nights are taken to differ, as a share, until 6 are stored to know it "
        "(default: 0.02)",
        "SHARE",
    ),
    Option(
        "base",
        "measure a second build in turn with the first and judge between the two: the same engine with this word "
        "changed, as in executable=/venvs/main/bin/python",
        "WORD=VALUE",
        "list",
    ),
    Option(
        "head",
        "a word that only the build under test has, and not the one of --llmperf-base; --llmperf-set changes both",
        "WORD=VALUE",
        "list",
    ),
    Option(
        "base-servers",
        "fresh: one server at a time, a fresh one for every run; both: both stay up (default: both where neither is "
        "started by us, else fresh)",
        choices=("fresh", "both"),
    ),
    Option(
        "confirm",
        "judge by the stored nights first, and measure only what they flag against --llmperf-base, N runs of each "
        "build in turn, after the last test",
        "N",
    ),
    Option("save-baseline", "store this session's valid results under NAME, except regressed ones", "NAME"),
    Option(
        "report",
        "write an HTML report of the session there, one file; making it needs pip install 'pytest-llmperf[report]'",
        "FILE.html",
    ),
    Option("markdown", "write the report there as Markdown, for a comment on a pull request", "FILE.md"),
    Option(
        "resume",
        "go on from the newest session in --llmperf-output, if it was cut short: its whole runs count where workload, "
        "engine, hardware, versions and options are the same, and only what is missing is measured",
        kind="flag",
    ),
    Option("output", "folder for server logs and records (default: .llmperf, below the root directory)", "DIR"),
    Option(
        "workers",
        "processes that send the load, each with its share of the sessions (default: 1); or a Ray cluster, one on "
        "each node: ray://auto, ray://HOST:PORT",
        "N|ray://...",
    ),
    Option(
        "telemetry",
        "how often a second the engine's GPUs are sampled beside each run, where it runs on this machine; off: not at "
        "all (default: 10)",
        "HZ|off",
    ),
    Option(
        "tolerate",
        "what hardware may do without making a run invalid; it is still said: names of rules with commas, as in "
        "link,memory",
        "RULE,...",
    ),
    Option("timeout", "seconds that a server may stay silent within a request (default: 300)", "SECONDS"),
    Option("request-timeout", "seconds that a whole request may take (default: 3600)", "SECONDS"),
    Option("start-timeout", "seconds that a server may take to start (default: 900)", "SECONDS"),
    Option("nvml-timeout", "seconds that the GPU driver may take to say what GPUs there are (default: 60)", "SECONDS"),
    Option(
        "lock-wait",
        "seconds that a test waits for a device on which another process measures (default: 3600)",
        "SECONDS",
    ),
    Option(
        "locks",
        "folder of the locks that keep two measurements off one device; the same for all who measure on this machine "
        f"(default: ${LOCKS_VARIABLE}, or /run/lock or /tmp)",
        "DIR",
    ),
)

API_KEY_VARIABLE = "LLMPERF_API_KEY"


@dataclass(frozen=True, slots=True)
class GitHub:
    """What a step of GitHub Actions tells those that run in it.

    `workspace`: the folder that annotations count files from; `summary`: the file that is shown as the step's summary.
    """

    workspace: Path | None
    summary: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What was asked for, checked and in its final types."""

    engine: str | None
    url: str | None
    model: str | None
    overrides: dict[str, Any]
    hardware: str | None
    require_hardware: bool
    runs: Budget
    warmup_runs: int
    baselines: Path
    gate: GateMode
    alpha: float
    nights: int
    night_spread: float
    base: dict[str, Any]
    """What the build to compare with has in place of the engine's own words; empty where there is none."""
    head: dict[str, Any]
    """What only the build under test has."""
    base_servers: str | None
    confirm: int | None
    """Runs of each build that confirm what the stored nights flag; None: all is measured in turn, or nothing."""
    save_baseline: str | None
    report: Path | None
    markdown: Path | None
    github: GitHub | None
    """None elsewhere."""
    resume: bool
    output: Path
    cache: Path
    workers: int | str
    """A number of processes, or the address of a Ray cluster, `ray://...`."""
    telemetry_hz: float | None
    """Samples per second; None: none are taken."""
    tolerated: frozenset[str]
    """Rules on the hardware whose breach makes no run invalid."""
    timeout_s: float
    request_timeout_s: float
    start_timeout_s: float
    nvml_timeout_s: float
    lock_wait_s: float
    locks: Path | None
    """None: the folder that is usual for locks between users."""
    api_key: str | None = field(repr=False)

    @property
    def is_simulated(self) -> bool:
        """Whether every engine is to be the simulated one."""
        return self.hardware is not None and self.hardware.startswith("sim:")

    @property
    def conditions(self) -> dict[str, Any]:
        """Those that bear on what a run measures and stand nowhere else in its records."""
        return {
            "workers": self.workers,
            "telemetry_hz": self.telemetry_hz,
            "tolerated": sorted(self.tolerated),
            "timeout_s": self.timeout_s,
            "request_timeout_s": self.request_timeout_s,
        }


def add_options(parser: pytest.Parser) -> None:
    """Register every option and its ini twin."""
    group = parser.getgroup("llmperf", "performance tests of LLM serving")
    for option in OPTIONS:
        if option.kind == "flag":
            group.addoption(option.flag, dest=option.key, action="store_true", default=None, help=option.help)
            parser.addini(option.key, option.help, type="bool", default=False)
        elif option.kind == "list":
            group.addoption(option.flag, dest=option.key, action="append", metavar=option.metavar, help=option.help)
            parser.addini(option.key, option.help, type="linelist", default=[])
        else:
            group.addoption(
                option.flag, dest=option.key, metavar=option.metavar, choices=option.choices, help=option.help
            )
            parser.addini(option.key, option.help, default=None)


def read_options(config: pytest.Config, environ: Mapping[str, str] = os.environ) -> Options:
    """Read and check everything. Raises `ConfigurationError` listing every mistake."""
    reader = _Reader(config)
    options = Options(
        engine=reader.checked("engine", option_values.engine_kind, None),
        url=reader.checked("url", option_values.url, None),
        model=reader.text("model"),
        overrides=reader.words("set"),
        hardware=reader.checked("hardware", option_values.hardware_key, None),
        require_hardware=reader.flag("require-hardware"),
        runs=reader.checked("runs", option_values.budget, Budget((5,))),
        warmup_runs=reader.checked("warmup-runs", option_values.whole(0), 1),
        baselines=reader.folder("baselines", "baselines"),
        gate=reader.checked("gate", option_values.gate_mode, GateMode.FAIL),
        alpha=reader.checked("alpha", option_values.probability, 0.01),
        nights=reader.checked("nights", option_values.whole(1), 30),
        night_spread=reader.checked("night-spread", option_values.share, 0.02),
        base=reader.words("base"),
        head=reader.words("head"),
        base_servers=reader.checked("base-servers", option_values.servers, None),
        confirm=reader.checked("confirm", option_values.whole(2), None),
        save_baseline=reader.checked("save-baseline", option_values.baseline_name, None),
        report=reader.file("report", needs=("jinja2", "matplotlib")),
        markdown=reader.file("markdown"),
        github=_github(environ),
        resume=reader.flag("resume"),
        output=reader.folder("output", ".llmperf"),
        cache=_cache_folder(environ),
        workers=reader.checked("workers", option_values.workers, 1),
        telemetry_hz=reader.checked("telemetry", option_values.rate_hz, 10.0),
        tolerated=reader.checked("tolerate", option_values.rules, frozenset()),
        timeout_s=reader.checked("timeout", option_values.seconds, 300.0),
        request_timeout_s=reader.checked("request-timeout", option_values.seconds, 3600.0),
        start_timeout_s=reader.checked("start-timeout", option_values.seconds, 900.0),
        nvml_timeout_s=reader.checked("nvml-timeout", option_values.seconds, 60.0),
        lock_wait_s=reader.checked("lock-wait", option_values.seconds, 3600.0),
        locks=reader.locks(environ),
        api_key=reader.api_key(environ),
    )
    if options.url and options.engine not in (None, "openai"):
        reader.problems.append(f"--llmperf-url goes with the engine openai, not with --llmperf-engine {options.engine}")
    if options.is_simulated and (options.url or options.engine not in (None, "sim")):
        other = "--llmperf-url" if options.url else f"--llmperf-engine {options.engine}"
        reader.problems.append(
            f"--llmperf-hardware {options.hardware} goes with the simulated engine, not with {other}"
        )
    reader.problems += shared({"--llmperf-report": options.report, "--llmperf-markdown": options.markdown})
    if options.confirm is not None and not (options.base or options.head):
        reader.problems.append("--llmperf-confirm needs the build to compare with: --llmperf-base WORD=VALUE")
    if reader.problems:
        raise ConfigurationError(*reader.problems)
    return options


class _Reader:
    """Reads options from the command line or else the ini file, and keeps the mistakes."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self.problems: list[str] = []

    def text(self, name: str) -> str | None:
        option = _option(name)
        given = self._config.getoption(option.key)
        return given if given is not None else self._config.getini(option.key) or None

    def checked(self, name: str, convert: Callable[[str], Any], default: Any) -> Any:
        """The converted value; a mistake is noted and the default returned."""
        text = self.text(name)
        if text is None:
            return default
        try:
            return convert(text)
        except ConfigurationError as error:
            self.problems += [f"{_option(name).flag}: {problem}" for problem in error.problems]
            return default

    def flag(self, name: str) -> bool:
        option = _option(name)
        return bool(self._config.getoption(option.key) or self._config.getini(option.key))

    def folder(self, name: str, default: str) -> Path:
        """From the command line relative to where pytest was called, else to the root directory."""
        option = _option(name)
        given = self._config.getoption(option.key)
        if given is not None:
            return Path(self._config.invocation_params.dir, given).resolve()
        return Path(self._config.rootpath, self._config.getini(option.key) or default)

    def locks(self, environ: Mapping[str, str]) -> Path | None:
        """A folder that is there; None where none is named."""
        given = environ.get(LOCKS_VARIABLE) if self.text("locks") is None else None
        if given is None and self.text("locks") is None:
            return None
        folder = Path(given) if given else self.folder("locks", "")
        if not (folder.is_dir() and os.access(folder, os.W_OK)):
            self.problems.append(
                f"--llmperf-locks: expected a folder that can be written to, as by all who measure here; got {folder}"
            )
        return folder

    def file(self, name: str, needs: Sequence[str] = ()) -> Path | None:
        """A file to be written, relative as folders are; that it cannot be is a mistake now, not after the runs.

        `needs`: the modules that writing it takes.
        """
        if self.text(name) is None:
            return None
        path, flag = self.folder(name, ""), _option(name).flag
        problem = unwritable(path)
        if problem is not None:
            self.problems.append(f"{flag}: {problem}")
        missing = [module for module in needs if importlib.util.find_spec(module) is None]
        if missing:
            self.problems.append(
                f"{flag} needs {' and '.join(missing)}: pip install 'pytest-llmperf[report]'; --llmperf-markdown needs "
                "nothing more"
            )
        return path

    def words(self, name: str) -> dict[str, Any]:
        """The words of engine specifications that an option gives as WORD=VALUE."""
        option = _option(name)
        words: dict[str, Any] = {}
        for text in [*self._config.getini(option.key), *(self._config.getoption(option.key) or ())]:
            word, separator, value = text.partition("=")
            if not separator:
                self.problems.append(f"{option.flag} {text!r}: expected WORD=VALUE, such as prefix_caching=false")
                continue
            words[word.strip()] = option_values.literal(value.strip())
        self.problems += _unknown_words(option, words)
        return words

    def api_key(self, environ: Mapping[str, str]) -> str | None:
        try:
            return api_key(environ)
        except ConfigurationError as error:
            self.problems += error.problems
            return None


def _github(environ: Mapping[str, str]) -> GitHub | None:
    if environ.get("GITHUB_ACTIONS") != "true":
        return None
    workspace, summary = environ.get("GITHUB_WORKSPACE"), environ.get("GITHUB_STEP_SUMMARY")
    return GitHub(Path(workspace) if workspace else None, Path(summary) if summary else None)


def _option(name: str) -> Option:
    return next(option for option in OPTIONS if option.name == name)


def _unknown_words(option: Option, words: Mapping[str, Any]) -> list[str]:
    if not words:
        return []
    from pytest_llmperf.engines.spec import WORDS  # noqa: PLC0415 - only a session that needs it pays for it

    return [f"{option.flag}: {unknown('word', word, sorted(WORDS))}" for word in words if word not in WORDS]


def api_key(environ: Mapping[str, str] = os.environ) -> str | None:
    """The key, which has to fit into a header line; it is never quoted. Raises `ConfigurationError`."""
    key = environ.get(API_KEY_VARIABLE, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigurationError(f"the environment variable {API_KEY_VARIABLE} holds characters that no key has")
    return Secret(key) if key else None


def _cache_folder(environ: Mapping[str, str]) -> Path:
    """Where generated models are kept, by the XDG convention."""
    home = environ.get("XDG_CACHE_HOME") or str(Path("~", ".cache").expanduser())
    return Path(home, "pytest-llmperf")
