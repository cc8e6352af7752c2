"""`pytest-llmperf report`."""

import os
from pathlib import Path

import pytest
from result_files import TEST, benchmark, document, written

from pytest_llmperf.cli import main
from pytest_llmperf.cli.exit_codes import INVALID, OK, USAGE
from pytest_llmperf.reports.html import svg


@pytest.fixture
def result(tmp_path):
    return str(written(tmp_path / "now.json", document(benchmark())))


def test_the_page_is_written(result, tmp_path, capsys):
    assert main(["report", result, "-o", str(tmp_path / "now.html")]) == OK

    assert TEST in (tmp_path / "now.html").read_text(encoding="utf-8")
    assert capsys.readouterr().out == f"{tmp_path / 'now.html'}: 1 not judged\n"


def test_the_comment_is_printed(result, capsys):
    assert main(["report", result, "--markdown", "-"]) == OK

    assert capsys.readouterr().out.startswith("<!-- pytest-llmperf report: NVIDIA-GH200-96GB -->\n### 1 not judged\n")


def test_the_comment_is_written_and_needs_no_library(result, tmp_path, monkeypatch):
    monkeypatch.setattr(svg, "LIBRARIES", ("no_such_module",))

    assert main(["report", result, "--markdown", str(tmp_path / "now.md")]) == OK
    assert (tmp_path / "now.md").read_text(encoding="utf-8").startswith("<!-- pytest-llmperf")


def test_a_library_that_is_missing_is_said(result, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(svg, "LIBRARIES", ("no_such_module",))

    assert main(["report", result, "-o", str(tmp_path / "now.html")]) == USAGE
    assert "needs no_such_module: pip install 'pytest-llmperf[report]'" in capsys.readouterr().err


def test_all_mistakes_at_once_and_nothing_is_written(result, tmp_path, capsys):
    arguments = ["-o", str(tmp_path / "none" / "a.html"), "--markdown", str(tmp_path), "--records", "nowhere"]

    assert main(["report", result, *arguments]) == USAGE

    said = capsys.readouterr().err
    assert "there is no folder" in said
    assert "is a folder; name a file in it" in said
    assert "--records: nowhere is no folder" in said


def test_no_file_is_written_over_another(result, tmp_path, capsys):
    """Neither the page by the comment, nor the result by either, whatever the path that leads there."""
    (tmp_path / "link.html").symlink_to(result)
    before = Path(result).read_bytes()

    assert main(["report", result, "-o", str(tmp_path / "a"), "--markdown", str(tmp_path / "b" / ".." / "a")]) == USAGE
    assert f"-o and --markdown name one file, {tmp_path}/a; give each a file of its own" in capsys.readouterr().err
    assert main(["report", result, "-o", str(tmp_path / "link.html")]) == USAGE
    assert f"RESULT.json and -o name one file, {result}; give each a file of its own" in capsys.readouterr().err
    assert before == Path(result).read_bytes()
    assert main(["report", result, "-o", "/dev/null", "--markdown", "/dev/null"]) == OK


def test_nothing_asked_for_is_a_mistake(result, capsys):
    assert main(["report", result]) == USAGE
    assert "say what to write" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_said(result, tmp_path, capsys):
    (tmp_path / "shut").mkdir(mode=0o500)

    assert main(["report", result, "-o", str(tmp_path / "shut" / "a.html")]) == USAGE
    assert "permission denied" in capsys.readouterr().err


def test_a_file_that_is_not_there_is_said_with_what_to_give(tmp_path, capsys):
    assert main(["report", "nope.json", "--markdown", "-"]) == INVALID

    assert capsys.readouterr().err == (
        "pytest-llmperf report: nope.json is not there; give a file that pytest wrote with --benchmark-json, "
        "or a stored night such as baselines/KEY/0001_main.json\n"
    )


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_file_that_cannot_be_used(tmp_path, content, capsys):
    path = written(tmp_path / "now.json", content)

    assert main(["report", str(path), "--markdown", "-"]) == INVALID
    assert str(path) in capsys.readouterr().err


def test_notes_go_to_standard_error(result, tmp_path, capsys):
    written(tmp_path / "records" / "a.jsonl", "{}\n")

    assert main(["report", result, "--markdown", "-", "--records", str(tmp_path / "records")]) == OK
    assert "a.jsonl was left out" in capsys.readouterr().err
