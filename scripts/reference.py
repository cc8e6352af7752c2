"""Write docs/reference.md from the code: `python scripts/reference.py`, or `make reference`.

Options, marks, fixtures, metrics, engine words, subcommands and exit codes, in the words of the code itself. With
`--check` nothing is written, and the exit code is 1 where the page is not current.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import pytest_llmperf
from pytest_llmperf import plugin
from pytest_llmperf.cli import SUBCOMMANDS, exit_codes
from pytest_llmperf.engines import ENGINES, spec, words_of
from pytest_llmperf.fixture import LLMPerf
from pytest_llmperf.metrics import LATENCIES, METRICS, STATISTICS, gated_by_default
from pytest_llmperf.options import API_KEY_VARIABLE, OPTIONS, Option
from pytest_llmperf.verdicts import Verdict

PAGE = Path(__file__).parents[1] / "docs" / "reference.md"
FIXTURES = ("llm_engine", "llm_engine_factory", "llm_perf", "gpu", "tiny_llama")


def page() -> str:
    """The whole page, the same for the same code."""
    sections: dict[str, Callable[[], Iterable[str]]] = {
        "Fixtures": _fixtures,
        "Marks": _marks,
        "Python names": _names,
        "Options": _options,
        "Metrics": _metrics,
        "Engine words": _words,
        "Commands": _commands,
        "Exit codes": _exit_codes,
    }
    lines = ["# Reference", "", "Generated from the code by `make reference`; a test keeps it current."]
    for title, section in sections.items():
        lines += ["", f"## {title}", "", *section()]
    return "\n".join(lines) + "\n"


def _fixtures() -> Iterator[str]:
    yield from _table(("fixture", "what it is"), ((f"`{name}`", _said(_fixture(name))) for name in FIXTURES))


def _fixture(name: str) -> str:
    """What the fixture is for: the docstring of the function, or of the object that it gives."""
    function = next(node for node in _tree(plugin).body if isinstance(node, ast.FunctionDef) and node.name == name)
    return ast.get_docstring(function) or ""


def _names() -> Iterator[str]:
    measuring: dict[str, Callable[..., Any]] = {"llm_perf": LLMPerf.__call__, "llm_perf.ratio": LLMPerf.ratio}
    rows = [(f"`{name}{_signature(function)}`", _doc(function)) for name, function in measuring.items()]
    for name in pytest_llmperf.__all__:
        thing = getattr(pytest_llmperf, name)
        called = _signature(thing) if inspect.isfunction(thing) else ""
        rows.append((f"`{name}{called}`", _doc(thing)))
    yield "The fixture `llm_perf`, and what `pytest_llmperf` exports."
    yield ""
    yield from _table(("name", "what it is for"), rows)


def _signature(function: Callable[..., Any]) -> str:
    """Without `self` and without types, which the code has."""
    found = inspect.signature(function)
    plain = [one.replace(annotation=one.empty) for one in found.parameters.values() if one.name != "self"]
    return str(found.replace(parameters=plain, return_annotation=found.empty))


def _marks() -> Iterator[str]:
    by_meaning: dict[str, list[str]] = {}
    for line in plugin.MARKS:
        mark, _, about = line.partition(": ")
        by_meaning.setdefault(about, []).append(f"`{mark}`")
    yield from _table(("mark", "what it says"), ((", ".join(same), _said(about)) for about, same in by_meaning.items()))


def _options() -> Iterator[str]:
    yield "The command line wins over the configuration file (`pytest.ini`, `[tool.pytest.ini_options]`)."
    yield ""
    rows = ((f"`{_call(option)}`", f"`{_twin(option)}`", _said(_help(option))) for option in OPTIONS)
    yield from _table(("option", "ini", "what it does"), rows)
    yield ""
    yield f"`{API_KEY_VARIABLE}` in the environment is the key for servers at a URL; it is written nowhere."


def _call(option: Option) -> str:
    value = option.metavar or (f"{{{','.join(option.choices)}}}" if option.choices else None)
    return option.flag if value is None else f"{option.flag} {value}"


def _twin(option: Option) -> str:
    return {"flag": f"{option.key} = true", "list": f"{option.key} =", "text": f"{option.key} ="}[option.kind]


def _help(option: Option) -> str:
    return f"{option.help} (may be repeated; in the file one for each line)" if option.kind == "list" else option.help


def _metrics() -> Iterator[str]:
    yield f"Each latency has {_listed(STATISTICS)}, as in `ttft_p50`; seconds, lower is better."
    yield ""
    formulas = {name: formula.args[0] for name, formula in LATENCIES.items() if isinstance(formula, partial)}
    rows = ((f"`{name}`", _doc(formulas.get(name, formula))) for name, formula in LATENCIES.items())
    yield from _table(("latency", "of each request"), rows)
    yield ""
    others = [metric for metric in METRICS.values() if not isinstance(metric.formula, partial)]
    yield from _table(
        ("metric", "unit", "better", "of each run"),
        (
            (f"`{metric.name}`", metric.unit, "higher" if metric.higher_is_better else "lower", _doc(metric.formula))
            for metric in others
        ),
    )
    yield ""
    closed, is_open = (_listed(gated_by_default(open_load=one)) for one in (False, True))
    yield f"Gated unless `llm_gate` marks say otherwise: {closed}; under an open load {is_open};"
    yield "and every `ratio:NAME` that `llm_perf.ratio(NAME, over, under)` records."
    yield ""
    yield f"Verdicts: {_listed(Verdict)}."


def _words() -> Iterator[str]:
    yield "Of `llm_engine(kind, **words)`, `llm_engine_factory(kind, **words)` and `--llmperf-set WORD=VALUE`."
    yield ""
    about = _attributes(_class(spec, "EngineSpec").body)
    rows = (
        (f"`{word}`", _said(about.get(word, "")), _said(takes), _kinds(word)) for word, (takes, _) in spec.WORDS.items()
    )
    yield from _table(("word", "what it says", "takes", "kinds"), rows)


def _kinds(word: str) -> str:
    """Which engines know the word."""
    known = [kind for kind in ENGINES if word in words_of(kind)]
    return "all" if len(known) == len(ENGINES) else _listed(known)


def _commands() -> Iterator[str]:
    for number, (name, module) in enumerate(SUBCOMMANDS.items()):
        if number:
            yield ""
        yield f"### pytest-llmperf {name}"
        yield ""
        yield _said(module.HELP)
        parser = argparse.ArgumentParser(prog=f"pytest-llmperf {name}", add_help=False)
        module.add_arguments(parser)
        yield from _arguments(parser)


def _arguments(parser: argparse.ArgumentParser) -> Iterator[str]:
    """A table of a parser's arguments, and those of its own subcommands."""
    rows = []
    nested: list[tuple[str, argparse.ArgumentParser]] = []
    for action in parser._actions:  # noqa: SLF001 - argparse has no public list of them
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            nested += action.choices.items()
        elif action.help != argparse.SUPPRESS and "--help" not in action.option_strings:
            rows.append((f"`{_usage(action)}`", _said((action.help or "").replace("%%", "%"))))
    if rows:
        yield ""
        yield from _table((f"`{parser.prog}`", ""), rows)
    for name, inner in nested:
        inner.prog = f"{parser.prog} {name}"
        yield from _arguments(inner)


def _usage(action: argparse.Action) -> str:
    value = action.metavar if isinstance(action.metavar, str) else None
    if value is None and action.choices is not None:
        value = f"{{{','.join(map(str, action.choices))}}}"
    if not action.option_strings:
        return value or action.dest
    name = action.option_strings[-1]
    return name if action.nargs == 0 else f"{name} {value or action.dest.upper()}"


def _exit_codes() -> Iterator[str]:
    about = _attributes(_tree(exit_codes).body)
    rows = ((str(getattr(exit_codes, name)), _said(said)) for name, said in about.items())
    yield from _table(("`pytest-llmperf`", ""), rows)
    yield ""
    of_pytest = {
        pytest.ExitCode.OK: "no test failed; unless `--llmperf-gate strict`, what could not be judged only warns",
        pytest.ExitCode.TESTS_FAILED: "a test failed, also as `REGRESSED`, or was in error, also as `INVALID_RUN`",
        pytest.ExitCode.INTERRUPTED: "Ctrl-C or SIGTERM; what was measured is stored",
        pytest.ExitCode.USAGE_ERROR: "mistakes in options, marks or baselines, all of them; nothing was started",
        pytest.ExitCode.NO_TESTS_COLLECTED: "no test was selected",
    }
    yield from _table(("`pytest`", ""), ((str(code.value), _said(said)) for code, said in of_pytest.items()))


def _listed(names: Iterable[object]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _doc(thing: Callable[..., Any]) -> str:
    return _said(inspect.getdoc(thing) or "")


def _said(text: str) -> str:
    """The first paragraph as one cell of a table."""
    return " ".join(text.split("\n\n", maxsplit=1)[0].split()).replace("|", "\\|").replace("<", "&lt;")


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heading)} |"
    yield f"|{' --- |' * len(heading)}"
    for row in rows:
        cells = [cell.replace("|", "\\|") if cell.startswith("`") else cell for cell in row]
        yield f"| {' | '.join(cells)} |"


def _tree(module: ModuleType) -> ast.Module:
    return ast.parse(inspect.getsource(module))


def _class(module: ModuleType, name: str) -> ast.ClassDef:
    return next(node for node in _tree(module).body if isinstance(node, ast.ClassDef) and node.name == name)


def _attributes(body: Sequence[ast.stmt]) -> dict[str, str]:
    """The strings that stand below attributes, which Python itself forgets."""
    found = {}
    for before, node in pairwise(body):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            target = before.targets[0] if isinstance(before, ast.Assign) else getattr(before, "target", None)
            if isinstance(target, ast.Name):
                found[target.id] = textwrap.dedent(node.value.value)
    return found


def main() -> int:
    """Write the page, or look whether it is current."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 where the page is not current")
    if not parser.parse_args().check:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    if PAGE.read_text(encoding="utf-8") == page():
        return 0
    sys.stderr.write("docs/reference.md is not what the code says: make reference\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
