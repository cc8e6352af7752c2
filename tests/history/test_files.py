"""In which order files are read, from folders and from git, and which are refused."""

from __future__ import annotations

from datetime import timedelta

import pytest
from nights import FIRST, Repository, commit_of, document, row, save, save_nights

from pytest_llmperf.errors import BaselineError
from pytest_llmperf.history import committed_files, stored_files

NO_DAY = "1970-01-01T00:00:00+00:00"


def names(reading):
    return [one.file.path.name for one in reading.files]


def test_dates_give_the_order(tmp_path):
    """Whatever the files are called, and wherever they lie."""
    for name, night in (("b/run.json", 2), ("a/z.json", 0), ("b/0001_x.json", 1)):
        path = tmp_path / name
        save(path.parent, document(row(0.1), night=night), path.name)

    reading = stored_files([tmp_path / "b", tmp_path / "a" / "z.json"])

    assert ["z.json", "0001_x.json", "run.json"] == names(reading)
    assert () == reading.problems


@pytest.mark.parametrize("date", [NO_DAY, "", "yesterday"])
def test_numbers_give_the_order_where_a_date_is_missing(tmp_path, date):
    """Simulations have none; a number of five digits comes after those of four."""
    for number in ("10000", "0002", "9999"):
        save(tmp_path, document(row(0.1), date=date), f"{number}_main.json")

    reading = stored_files([tmp_path])

    assert ["0002_main.json", "9999_main.json", "10000_main.json"] == names(reading)
    assert [None] * 3 == [one.at for one in reading.files]


def test_folders_may_be_of_both_kinds(tmp_path):
    """Simulated files beside measured ones without numbers."""
    save(tmp_path / "sim-gh200", document(row(0.1), date=NO_DAY, key="sim-gh200"), "0001_main.json")
    save(tmp_path / "measured", document(row(0.1)), "night.json")

    assert {"0001_main.json", "night.json"} == set(names(stored_files([tmp_path])))


def test_files_without_date_and_number_have_no_order(tmp_path):
    """The sentence says of which, and what to do."""
    save(tmp_path, document(row(0.1)), "good.json")
    save(tmp_path, document(row(0.1), date="yesterday"), "0001_bad.json")

    with pytest.raises(BaselineError) as caught:
        stored_files([tmp_path])

    assert (
        f"{tmp_path}/good.json cannot be put in order: its name has no number, and 0001_bad.json has no date "
        "('yesterday'); name the files 0001_NAME.json and so on"
    ) == str(caught.value)


def test_what_cannot_be_read_is_left_out_with_a_sentence(tmp_path):
    """One for each, and the rest is there."""
    save_nights(tmp_path, [0.1, 0.1])
    whole = (tmp_path / "0001_main.json").read_text(encoding="utf-8")
    save(tmp_path, whole[: len(whole) // 2], "0003_torn.json")
    save(tmp_path, {"results": []}, "0004_other.json")

    reading = stored_files([tmp_path])

    assert ["0001_main.json", "0002_main.json"] == names(reading)
    torn, other = reading.problems
    assert torn.startswith(f"{tmp_path}/0003_torn.json is not readable JSON: ")
    assert other.startswith(f"{tmp_path}/0004_other.json is not a result file: ")


def test_nothing_to_read_is_said(tmp_path):
    """An empty folder and one that is not there."""
    with pytest.raises(BaselineError, match=r"has no result file: expected files such as 0001_main\.json in it"):
        stored_files([tmp_path])
    with pytest.raises(BaselineError, match="nowhere is not there; give a folder of result files"):
        stored_files([tmp_path / "nowhere"])


@pytest.mark.parametrize(
    ("written", "understood"),
    [
        (commit_of(7), commit_of(7)),
        ("unversioned", None),
        ("unknown", None),
        ("", None),
        (None, commit_of(0)),
        (5, None),
    ],
)
def test_the_commit_is_the_measured_one(tmp_path, written, understood):
    """pytest-benchmark writes a word where there is none."""
    save(tmp_path, document(row(0.1), commit=written), "0001_main.json")

    assert [understood] == [one.commit for one in stored_files([tmp_path]).files]


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path / "repository")


def test_git_remembers_files_that_are_gone(repository):
    """Those that commits added or changed, with git's dates and commits, whatever the files say."""
    folder = repository.folder / "baselines" / "KEY"
    expected = []
    for night, value in enumerate([0.1, 0.2, 0.3]):
        save(folder, document(row(value), date=NO_DAY), "0001_main.json")
        expected.append((repository.commit(night), value, FIRST + timedelta(days=night)))
    (folder / "0001_main.json").unlink()
    save(folder, "a note", "README.md")
    repository.commit(3)

    reading = committed_files(folder.parent, "HEAD")

    found = [(one.commit, one.file.entries[0].stored_values[1], one.at) for one in reading.files]
    assert expected == found
    assert [f"{commit}:baselines/KEY/0001_main.json" for commit, _, _ in expected] == [
        one.blob for one in reading.files
    ]


def test_a_range_of_commits_is_as_git_has_it(repository):
    """Two files of one commit are in the order of their numbers; a file that was only moved is no new night."""
    folder = repository.folder
    save(folder, document(row(0.1)), "0001_a.json")
    first = repository.commit(0)
    save(folder, document(row(0.3), night=1), "10000_c.json")
    save(folder, document(row(0.2), night=2), "0002 ä b.json")
    repository.commit(1)
    (folder / "0001_a.json").rename(folder / "0009_moved.json")
    repository.commit(2)

    assert ["0002 ä b.json", "10000_c.json"] == names(committed_files(folder, f"{first}..HEAD"))
    assert ["0001_a.json", "0002 ä b.json", "10000_c.json"] == names(committed_files(folder, "main"))


def test_a_broken_file_in_git_is_left_out(repository):
    """Its sentence says the commit, too."""
    save(repository.folder, "{", "0001_torn.json")
    commit = repository.commit()
    save(repository.folder, document(row(0.1)), "0002_main.json")
    (repository.folder / "0003_bytes.json").write_bytes(b"\xff\xfe")
    repository.commit(1)

    reading = committed_files(repository.folder, "HEAD")

    assert ["0002_main.json"] == names(reading)
    torn, raw = reading.problems
    assert torn.startswith(f"{commit[:10]}:0001_torn.json is not readable JSON: ")
    assert "0003_bytes.json in the git history of" in raw


@pytest.mark.parametrize(
    ("revisions", "complaint"),
    [
        ("v9..main", "git log in .*: fatal: "),
        ("--all", "git log in .*: fatal: "),
        ("HEAD", "no commit of HEAD brought a"),
    ],
)
def test_what_git_does_not_know_is_said(repository, revisions, complaint):
    """An unknown name, an option in place of a range, a range without result files."""
    save(repository.folder, "nothing", "README.md")
    repository.commit()

    with pytest.raises(BaselineError, match=complaint):
        committed_files(repository.folder, revisions)


def test_a_folder_without_git_is_said(tmp_path):
    """In git's own words."""
    with pytest.raises(BaselineError, match=r"git log in .*: fatal: not a git repository"):
        committed_files(tmp_path, "HEAD")
    with pytest.raises(BaselineError, match="is no folder; with --git give the one that git has result files of"):
        committed_files(tmp_path / "file.json", "HEAD")
