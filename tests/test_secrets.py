"""Secrets in every place where one can be given are in nothing that a session leaves or shows.

What is searched: the terminal with locals and tracebacks in full, JUnit XML, the page, Markdown, JSON, GitHub's
annotations, records, logs of engines, and the command lines of all processes that were started.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from servers import CompletionsServer
from stub_engine import installed

from pytest_llmperf.cli import exit_codes, main
from pytest_llmperf.engines import make_spec
from pytest_llmperf.errors import ConfigurationError
from pytest_llmperf.secret import (
    Secret,
    SecretBytes,
    SecretDict,
    concealed,
    fingerprint,
    is_secret_flag,
    is_secret_value,
    secrets_of,
    shown,
    without_credentials,
)

PLANTED = {
    "LLMPERF_API_KEY": "planted-api-key-1c9a",
    "HF_TOKEN": "planted-inherited-token-77f0",
    "INNOCENT": "planted-inherited-value-e3b1",
    "PLANTED_WORD": "planted-env-word-5d20",
    "PLANTED_PASSWORD": "planted-env-password-0aa4",
}
TEST = """
import os
import pytest
from pytest_llmperf import closed_loop, multi_round, single_turn

REQUESTS = single_turn(requests=2, input_tokens=8, output_tokens=4)
# A server this fast is beyond what a client can measure; what is gated here does not depend on it.
pytestmark = pytest.mark.llm_gate(metric="cache_hit_rate")

def words(fault):
    given = {name: os.environ[name] for name in ("PLANTED_WORD", "PLANTED_PASSWORD")}
    told = {"STUB_TELLS": "PLANTED_WORD PLANTED_PASSWORD HF_TOKEN LLMPERF_API_KEY", "STUB_FAULT": fault}
    return {"model": "m", "executable": os.environ["STUB_PYTHON"], "env": {**given, **told}, "max_model_len": 2048}

@pytest.mark.llm_engine("openai", url=os.environ["GOOD"])
def test_passes(llm_engine, llm_perf):
    llm_perf(llm_engine, REQUESTS, load=closed_loop(1))

@pytest.mark.llm_engine("openai", url=os.environ["GOOD"])
def test_fails(llm_engine, llm_perf):
    result = llm_perf(llm_engine, REQUESTS, load=closed_loop(1))
    connector = llm_engine.connector()
    assert (result, llm_engine, llm_engine.spec, connector) == 5

@pytest.mark.llm_engine("openai", url=os.environ["ECHOING"])
def test_is_refused(llm_engine, llm_perf):
    llm_perf(llm_engine, REQUESTS, load=closed_loop(1))

@pytest.mark.llm_engine("vllm", **words("none"))
def test_own_server(llm_engine, llm_perf):
    result = llm_perf(llm_engine, REQUESTS, load=closed_loop(1))
    assert llm_engine.spec == result

@pytest.mark.llm_engine("vllm", **words("none"))
def test_own_server_is_recorded(llm_engine, llm_perf):
    users = multi_round(users=1, rounds=3, context_tokens=64, input_tokens=16, output_tokens=4)
    assert not llm_perf(llm_engine, users).errors

@pytest.mark.llm_engine("vllm", **words("tell"))
def test_crashes_at_start(llm_engine, llm_perf):
    llm_perf(llm_engine, REQUESTS, load=closed_loop(1))

@pytest.mark.llm_engine("vllm", **words("hang"))
def test_never_starts(llm_engine, llm_perf):
    llm_perf(llm_engine, REQUESTS, load=closed_loop(1))
"""
PYTEST = ("-m", "pytest")
OURS = ("-c", "import sys; from pytest_llmperf.cli import main; sys.exit(main())")
EXPOSED = re.compile("planted-[a-z-]+-[0-9a-f]{4}")


class Watcher(threading.Thread):
    """Collects the command lines of all processes, and what is in a folder for moments only."""

    def __init__(self, temporary=None):
        super().__init__()
        self.seen = set()
        self._temporary = temporary
        self._over = threading.Event()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self.join()

    def run(self):
        while not self._over.wait(0.02):
            leases = [] if self._temporary is None else self._temporary.glob("pytest-llmperf-*/*")
            for path in (*Path("/proc").glob("[0-9]*/cmdline"), *leases):
                try:
                    self.seen.add(path.read_bytes())
                except OSError:  # it has ended
                    continue


@pytest.fixture
def planted(monkeypatch, tmp_path):
    """Secrets in the environment, and servers that would tell them."""
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("STUB_PYTHON", installed(tmp_path / "engines"))
    echo = json.dumps({"error": {"message": f"{PLANTED['LLMPERF_API_KEY']} is no key"}}).encode()
    with (
        CompletionsServer(api_key=PLANTED["LLMPERF_API_KEY"]) as good,
        CompletionsServer(routes={"/v1/models": (401, echo)}) as echoing,
    ):
        monkeypatch.setenv("GOOD", good.url)
        monkeypatch.setenv("ECHOING", echoing.url)
        yield good


def exposed(folder, *texts):
    """Where which secrets are to be read."""
    found = {f"text {number}": EXPOSED.findall(text) for number, text in enumerate(texts)}
    for path in folder.rglob("*"):
        if path.is_file() and "engines" not in path.parts:
            found[str(path)] = EXPOSED.findall(path.read_bytes().decode(errors="replace"))
    return {where: set(secrets) for where, secrets in found.items() if secrets}


def command(folder, program, *arguments):
    """A program in a process of its own; what it printed."""
    told = {"GITHUB_ACTIONS": "true", "XDG_CACHE_HOME": str(folder / "cache"), "TMPDIR": str(folder / "tmp")}
    (folder / "tmp").mkdir(exist_ok=True)
    environment = {**os.environ, **told}
    done = subprocess.run(
        [sys.executable, *program, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_no_secret_is_in_anything_that_a_session_leaves(planted, tmp_path):
    """Whatever becomes of its tests."""
    folder = tmp_path / "session"
    folder.mkdir()
    (folder / "test_it.py").write_text(TEST)
    with Watcher(folder / "tmp") as watcher:
        text = command(
            folder, PYTEST, "-p", "no:cacheprovider", "-W", "ignore", "-l", "-vv", "--tb=long", "--full-trace", "-rA",
            "--junitxml", "out.xml", "--benchmark-json", "out.json", "--llmperf-report", "out.html",
            "--llmperf-markdown", "out.md", "--llmperf-runs", "1", "--llmperf-warmup-runs", "0",
            "--llmperf-gate", "off", "--llmperf-start-timeout", "6",
        )  # fmt: skip
        loaded = command(
            folder, OURS, "load", planted.url, "--requests", "2", "--concurrency", "1", "--json",
            "load.json",
        )  # fmt: skip

    assert "2 failed, 2 passed, 3 errors" in text.replace(" in ", ", ")
    assert ["out.html", "out.json", "out.md", "out.xml"] == sorted(path.name for path in folder.glob("out.*"))
    assert (folder / "load.json").is_file(), loaded
    assert "sha256:" in (folder / "out.json").read_text()  # what tells the engine's words apart
    assert "*** is no key" in text
    assert "PLANTED_WORD=***" in text  # the engine's own words
    assert {} == exposed(folder, text, loaded, *(line.decode(errors="replace") for line in watcher.seen))
    assert any(b"vllm.entrypoints" in line for line in watcher.seen)
    assert any(b'"shared_before"' in content for content in watcher.seen)  # a lease
    assert list(folder.glob(".llmperf/*/session.json"))
    assert all(0o600 == path.stat().st_mode & 0o777 for path in folder.rglob("vllm-*.log"))


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_no_secret_is_in_what_two_builds_leave(planted, tmp_path):
    """Both are started with words that hold secrets, and differ in another one."""
    folder = tmp_path / "ab"
    folder.mkdir()
    (folder / "test_it.py").write_text(TEST)
    with Watcher(folder / "tmp") as watcher:
        text = command(
            folder, OURS, "ab", "--base", "prefix_caching=false", "--runs", "2", "--json", "out.json", "--",
            "test_it.py::test_own_server_is_recorded", "-p", "no:cacheprovider", "-l", "-vv", "--full-trace",
        )  # fmt: skip

    assert "against the base build in turn (prefix_caching False -> None)" in text
    assert (folder / "out.json").is_file()
    assert {} == exposed(folder, text, *(line.decode(errors="replace") for line in watcher.seen))
    assert any(b"vllm.entrypoints" in line for line in watcher.seen)


@pytest.mark.slow
def test_no_secret_is_in_what_a_server_of_ours_says(planted, tmp_path):
    """The simulated engine asks for no key, and tells nothing of what it inherits."""
    with Watcher() as watcher:
        served = subprocess.Popen(
            [sys.executable, *OURS, "serve", "--ttft-ms", "1", "--itl-ms", "1", "--port", "0"],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        said = served.stdout.readline()
        served.terminate()
        said += served.communicate(timeout=30)[0]

    assert "http://127.0.0.1:" in said
    assert {} == exposed(tmp_path, said, *(line.decode(errors="replace") for line in watcher.seen))


@pytest.mark.parametrize(
    "option",
    [
        ("--llmperf-url", "http://user:planted-password-0000@localhost:1"),
        ("--llmperf-url", "http://localhost:1?token=planted-password-0000"),
        ("--llmperf-url", "http://planted-password-0000@h:x/"),
        ("--llmperf-base", "url=http://user:planted-password-0000@localhost:1"),
        ("--llmperf-workers", "ray://user:planted-password-0000@head:10001"),
        ("--llmperf-workers", "ray://head:10001?token=planted-password-0000"),
        ("--llmperf-workers", "http://user:planted-password-0000@head:10001"),
    ],
)
def test_a_url_with_a_secret_is_refused_and_not_quoted(pytester, option):
    pytester.makepyfile("""
        import pytest
        @pytest.mark.llm_engine("openai", url="http://localhost:1")
        def test_it(llm_engine, llm_perf): pass
    """)
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", *option)

    text = result.stdout.str() + result.stderr.str()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert any(said in text for said in ("LLMPERF_API_KEY", "expected http://HOST:PORT", "expected ray://auto", "***"))
    assert [] == EXPOSED.findall(text)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--head", "url=http://user:planted-password-0000@h:1"), "belongs into LLMPERF_API_KEY"),
        (("--base", "http://user:planted-password-0000@h:1"), "expected WORD=VALUE"),
    ],
)
def test_builds_with_a_secret_are_refused_and_not_quoted(arguments, said, capsys):
    """They would be on the command line of the pytest that measures them."""
    assert exit_codes.USAGE == main(["ab", *arguments])

    text = "".join(capsys.readouterr())
    assert said in text
    assert [] == EXPOSED.findall(text)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"args": ["--api-key", "planted-password-0000"]}, "args has --api-key, whose value everybody on this machine"),
        ({"args": ["--api-key=planted-password-0000"]}, "args has --api-key, whose value everybody on this machine"),
        ({"args": ["--hf_token=planted-password-0000"]}, "args has --hf_token, whose value everybody on this machine"),
        ({"env": "A=planted-password-0000"}, "env=<str>; expected a dict of environment variables"),
    ],
)
def test_a_word_with_a_secret_is_refused_and_not_quoted(words, said):
    """A command line is for everybody to read."""
    with pytest.raises(ConfigurationError) as caught:
        make_spec("vllm", {"model": "m", **words})

    assert said in str(caught.value)
    assert [] == EXPOSED.findall(str(caught.value))


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--api-key", True), ("--hf-token=x", True), ("--ssl-keyfile-password", True), ("--admin_api_key", True),
        ("--max-num-batched-tokens", False), ("--tokenizer", False), ("--ssl-keyfile", False), ("hf-token", False),
    ],
)  # fmt: skip
def test_arguments_that_bring_a_secret(argument, expected):
    assert expected == is_secret_flag(argument)


def test_a_secret_does_not_show_itself():
    """It is what it is for whoever uses it, also in another process."""
    secret, request, headers = Secret("abc"), SecretBytes(b"abc"), SecretDict({"Authorization": "abc"})

    assert ("abc", "Bearer abc", b"abc") == (secret, f"Bearer {secret}", bytes(request))
    assert ["'***'", "<3 bytes>", "<values of Authorization>"] == [repr(one) for one in (secret, request, headers)]
    assert "'***'" == repr(pickle.loads(pickle.dumps(secret)))
    assert "'***'" == repr(make_spec("vllm", {"model": "m", "env": {"A": "abc"}}).env[0][1])


def test_two_values_are_told_apart_without_telling_them():
    """So that a changed variable is told; of one that is called a secret nothing at all."""
    assert fingerprint("A", "1") != fingerprint("A", "2")
    assert "***" == fingerprint("MY_TOKEN", "1") == fingerprint("MY_TOKEN", "2")


@pytest.mark.parametrize(
    ("value", "is_secret"),
    [
        ("hf_abcdefghijkl", True),
        ("sk-proj-abcdefghijkl", True),
        ("http://user:password@proxy:3128", True),
        ("9f86d081884c7d659a2feaa0c55ad015", True),
        ("-----BEGIN PRIVATE KEY-----", True),
        ("http://proxy.example.com:3128", False),
        ("expandable_segments:True,max_split_size_mb:512", False),
        ("TRITON_ATTN_VLLM_V1", False),
        ("/models/llama-3.1-8b-instruct", False),
        ("0,1,2,3", False),
        ("1", False),
    ],
)
def test_values_that_have_the_form_of_a_secret(value, is_secret):
    """They are not shown, however they are called; the others are, so that a command can be repeated."""
    assert is_secret is is_secret_value(value)
    assert ("***" if is_secret else value) == shown("PLAIN", Secret(value))
    assert value == shown("PLAIN", value)  # what we have set ourselves
    assert "***" == shown("MY_TOKEN", Secret(value))


def test_what_is_concealed():
    """Longer secrets first, so that one within another leaves no rest; short values are none, and words of a log are
    only where their name says so."""
    added = {"A": Secret("k-0123-4567-89ab"), "B": Secret("1"), "C": Secret("FLASHINFER"), "MY_KEY": "abcdef"}
    environment = {"X_TOKEN": "abcdefgh", "PATH": "/usr/bin/python"}

    found = secrets_of(added, environment)

    assert {"k-0123-4567-89ab", "abcdef", "abcdefgh"} == set(found)
    text = "a abcdefgh, abcdef 1 and k-0123-4567-89ab by FLASHINFER in /usr/bin/python"
    assert "a ***, *** 1 and *** by FLASHINFER in /usr/bin/python" == concealed(text, found)


def test_a_url_as_it_may_be_quoted():
    assert "http://***@h:1/v1?***" == without_credentials("http://u:p@h:1/v1?token=s")


@pytest.mark.slow
def test_the_watcher_sees_command_lines():
    """So that the test above can fail."""
    with Watcher() as watcher:
        subprocess.run([sys.executable, "-c", "import time; time.sleep(0.3)", "planted-canary-0000"], check=True)
        time.sleep(0.05)
    assert any(b"planted-canary-0000" in line for line in watcher.seen)
