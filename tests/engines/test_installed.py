"""What of a package a Python has."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from pytest_llmperf.engines import installed

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder on the path with one package, `engine_of_tests`."""
    (tmp_path / "engine_of_tests").mkdir()
    (tmp_path / "engine_of_tests" / "__init__.py").write_text("raise ImportError('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def distribute(site, version, direct_url=None):
    """Have the package belong to a distribution."""
    folder = site / f"its_wheel-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: its-wheel\nVersion: {version}\n")
    (folder / "top_level.txt").write_text("engine_of_tests\n")
    if direct_url is not None:
        (folder / "direct_url.json").write_text(direct_url)


def test_not_there():
    """That is said, and nothing raised."""
    assert installed.about("no_such_package_at_all") is None


def test_without_a_distribution(site):
    """A folder on the path is there, and tells nothing; it is not imported."""
    assert {} == installed.about("engine_of_tests")


def test_distribution_and_version(site):
    """Of whatever wheel brought the package."""
    distribute(site, "1.2.3")
    assert {"distribution": "its-wheel", "version": "1.2.3"} == installed.about("engine_of_tests")


@pytest.mark.parametrize(
    "text", [f'{{"vcs_info": {{"commit_id": "{COMMIT}"}}}}', "{}", "[]", '{"vcs_info": {"commit_id": 3}}', "no"]
)
def test_the_commit_of_a_repository(site, text):
    """As pip keeps it; anything else in that file says nothing."""
    distribute(site, "1.2.3", text)
    assert (COMMIT if COMMIT in text else None) == installed.about("engine_of_tests").get("commit")


@pytest.mark.parametrize(
    ("line", "commit"),
    [
        (f"__commit_id__ = commit_id = 'g{COMMIT[:9]}'", COMMIT[:9]),
        ("__commit_id__ = commit_id = None", None),
        ("commit_id: str | None", None),
    ],
)
def test_the_commit_that_was_stamped(site, line, commit):
    """As setuptools-scm writes it."""
    (site / "engine_of_tests" / "_version.py").write_text(line + "\n")
    assert commit == installed.about("engine_of_tests").get("commit")


@pytest.mark.parametrize(
    ("version", "commit"), [("0.1.dev1+gabcdef0", "abcdef0"), ("1.0+cu130", None), ("1+cpu.gabcdef1", "abcdef1")]
)
def test_the_commit_in_a_version(site, version, commit):
    """As builds from source have it."""
    distribute(site, version)
    assert commit == installed.about("engine_of_tests").get("commit")


def test_asked_of_another_python(site):
    """The files beside this one, which are called as the engines are, are no engines."""
    command = [sys.executable, installed.__file__]
    assert b"null\n" == subprocess.run([*command, "placement"], stdout=subprocess.PIPE, check=True).stdout
    distribute(site, "1.2.3")
    env = {"PYTHONPATH": str(site)}
    found = subprocess.run([*command, "engine_of_tests"], stdout=subprocess.PIPE, check=True, env=env)
    assert {"distribution": "its-wheel", "version": "1.2.3"} == json.loads(found.stdout)
