"""`pytest-llmperf ab`: the builds that it makes of words, URLs and revisions, and what it ends with."""

from __future__ import annotations

import json
import subprocess

import pytest

from pytest_llmperf.cli import main

pytestmark = pytest.mark.real_time

TEST = """
import pytest
from pytest_llmperf import multi_round, round_robin

@pytest.mark.llm_engine("vllm", model="llama-3.1-8b", prefix_caching=True)
def test_rounds(llm_engine, llm_perf):
    users = multi_round(users=2, rounds=2, context_tokens=1000, input_tokens=64, output_tokens=32, seed=7)
    llm_perf(llm_engine, users, load=round_robin())
"""
SHAPE = {
    "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256, "torch_dtype": "bfloat16",
    "max_position_embeddings": 131072,
}  # fmt: skip
ON_SIM = ("--", "-q", "-p", "no:cacheprovider", "--llmperf-hardware", "sim:gh200", "--llmperf-set", "run_noise=0.01")


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """A folder with one performance test, which is where the command is called."""
    folder = tmp_path / "suite"
    folder.mkdir()
    (folder / "test_it.py").write_text(TEST)
    monkeypatch.chdir(folder)
    return folder


def git(folder, *words):
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    return subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True, text=True)


@pytest.fixture
def checkout(tmp_path):
    """An engine's repository: the branch `slower` has a model with more layers."""
    folder = tmp_path / "engine"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    for branch, layers in (("main", 32), ("slower", 40)):
        if branch != "main":
            git(folder, "checkout", "-q", "-b", branch)
        (folder / "config.json").write_text(json.dumps({**SHAPE, "num_hidden_layers": layers}))
        git(folder, "add", "config.json")
        git(folder, "commit", "-q", "-m", branch)
    return folder


@pytest.mark.slow
def test_a_slower_head_is_a_regression(suite, capfd):
    """The head's words are not the base's; the judgement is in the file."""
    code = main(["ab", "--base", "slow=decode:+0%", "--head", "slow=decode:+20%", "--json", "out.json", *ON_SIM])

    assert 1 == code
    assert capfd.readouterr().out.endswith("1 REGRESSED\n")
    rows = json.loads((suite / "out.json").read_text())["benchmarks"]
    assert {"REGRESSED"} == {row["extra_info"]["llmperf"]["judgement"]["verdict"] for row in rows}


@pytest.mark.slow
@pytest.mark.usefixtures("suite")
def test_builds_that_do_not_differ_in_speed_pass(capfd):
    """A build that is the other one does, too, with a doubt."""
    assert 0 == main(["ab", "--base", "gpu_memory_fraction=0.9", *ON_SIM])
    assert "1 PASS" in capfd.readouterr().out
    assert 0 == main(["ab", "--base", "prefix_caching=true", *ON_SIM])
    assert "doubt: both builds have the same words" in capfd.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("suite")
def test_two_revisions_of_a_checkout(checkout, capfd):
    """Each in a folder of its own, installed there, and nothing left in the checkout."""
    word = "model={build}/config"
    install = "mkdir config && cp config.json config"
    words = ["--base", word, "--head", word, "--install", install, "--checkout", str(checkout)]

    code = main(["ab", *words, "--base-rev", "main", "--head-rev", "slower", "--runs", "4", *ON_SIM])

    assert 1 == code, capfd.readouterr()
    assert 1 == len(git(checkout, "worktree", "list").stdout.splitlines())


@pytest.mark.usefixtures("suite")
def test_an_install_that_fails_is_said_and_leaves_nothing(checkout, capfd):
    """The command and its exit code; nothing is measured."""
    words = ["--base", "model={build}", "--checkout", str(checkout), "--base-rev", "main", "--head-rev", "slower"]

    code = main(["ab", *words, "--install", "exit 7", *ON_SIM])

    assert 2 == code
    assert "pytest-llmperf ab: exit 7 ended with exit code 7; mend it first" in capfd.readouterr().err
    assert 1 == len(git(checkout, "worktree", "list").stdout.splitlines())


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "the builds do not differ; say what one has with --base WORD=VALUE or --head WORD=VALUE"),
        (["--base", "slow"], "'slow': expected WORD=VALUE"),
        (["--base", "a=1", "--install", "make"], "--install needs the checkout"),
        (["--base", "a=1", "--base-rev", "main"], "--checkout, --base-rev and --head-rev go together"),
        (["--base", "executable={build}/python"], "{build} is the folder of a revision"),
        (["--base", "a=1", "--", "-p", "no:benchmark"], "leave out -p no:benchmark"),
        (["--base", "a=1", "--checkout", ".", "--base-rev", "a", "--head-rev", "b"], "--checkout . is no git checkout"),
    ],
)
@pytest.mark.usefixtures("suite")
def test_mistakes_are_told_before_anything_is_measured(words, complaint, capfd):
    """Exit code 3."""
    assert 3 == main(["ab", *words])
    assert complaint in capfd.readouterr().err


@pytest.mark.usefixtures("suite")
def test_a_revision_that_is_not_there(checkout, capfd):
    """Named, before a folder is made."""
    revisions = ["--base-rev", "main", "--head-rev", "nosuch"]

    assert 3 == main(["ab", "--base", "model={build}", "--checkout", str(checkout), *revisions])
    assert f"{checkout} has no revision 'nosuch'" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("suite")
def test_what_pytest_refuses_is_a_usage_mistake(capfd):
    """A word that no engine knows."""
    assert 3 == main(["ab", "--base", "colour=red", *ON_SIM])
    assert "unknown word 'colour'" in capfd.readouterr().err
