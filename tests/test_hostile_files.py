"""Files from strangers: each is read, or refused in a sentence that names it. Nothing is run, none takes all memory.

`pytest tests/test_hostile_files.py --hypothesis-profile=fuzz` tries thousands of each; `benchmarks/fuzz.py` has the
coverage choose what to try.
"""

from __future__ import annotations

import copy
import gzip
import json
import os
import resource
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from night_files import KEY, document, row
from readers import READERS

from pytest_llmperf.baselines import Baselines
from pytest_llmperf.errors import BaselineError
from pytest_llmperf.files import json_of
from pytest_llmperf.result_file import read

MOST_MIB = 400
"""A line of 64 MiB is read before it is refused; it and what is made of it are a few times as much."""
LAUGHS = "a: &a [x,x]\n" + "".join(f"{b}: &{b} [*{a},*{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
DEEP = "[" * 200_000
NASTY = st.sampled_from(
    [
        None, True, False, -1, 0, 1, 1e308, -1e308, 2**70, float("nan"), float("inf"), "", "x", "1",
        "\x1b[31m\n::error::", "../../x", "/etc/passwd", "\ud800", "x" * 3000,
        [], {}, [[]], [None], {"": None}, [1, "a"], {"a": {"b": [{}]}},
    ]
)  # fmt: skip
BYTES = st.sampled_from(
    [b"", b"\0", b"\xff", b"\xef\xbb\xbf", b"NaN", b"1e999", b"9" * 5000, b"[" * 2000, b'"', b"\\ud800", b"{", b"}",
     b",", b"\n", b"\r", b"-", b"null", b"\t", b"\xe2\x80\xa8"]
)  # fmt: skip


def outcome(reader, path):
    """What came of a file: None for a result, else the complaint, which has to be fit for people."""
    try:
        reader.read(path)
    except reader.errors as error:
        text = str(error)
    else:
        return None
    assert path.parent.name in text or path.name in text, text[:300]
    assert len(text) < 3000, text[:300]
    assert "Traceback" not in text
    return text


@pytest.fixture(params=READERS)
def reader(request):
    return READERS[request.param]


def test_the_good_files_are_read(reader, tmp_path):
    """So that what follows can fail."""
    path = tmp_path / reader.name
    path.write_text(reader.good(tmp_path))

    assert outcome(reader, path) is None


def _fifo(path):
    os.mkfifo(path)


def _sparse(path):
    with path.open("wb") as stream:
        stream.truncate(3 << 30)


SPECIAL = {
    "named pipe": _fifo,
    "folder": Path.mkdir,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "link to itself": lambda path: path.symlink_to(path),
    "link to nothing": lambda path: path.symlink_to("nothing"),
    "3 GiB of nothing": _sparse,
    "empty": Path.touch,
    "no text": lambda path: path.write_bytes(b'{"benchmarks": "\xff\xfe"}\n'),
    "compressed": lambda path: path.write_bytes(gzip.compress(b"0" * 1_000_000)),
    "deep": lambda path: path.write_text(DEEP),
    "deep within": lambda path: path.write_text(f'{{"a": {DEEP}'),
    "a number of a million digits": lambda path: path.write_text("1" * 1_000_000),
    "billion laughs": lambda path: path.write_text(LAUGHS),
    "YAML that makes objects": lambda path: path.write_text("!!python/object/apply:os.system ['touch owned']\n"),
    "pickle": lambda path: path.write_bytes(b"cos\nsystem\n(S'touch owned'\ntR."),
}


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.timeout(60)
def test_what_is_no_such_file_is_refused_in_a_sentence(reader, tmp_path, monkeypatch, kind):
    """At once, in bounded memory, and nothing in it was run."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "folder-of-it"
    folder.mkdir()
    path = folder / reader.name
    SPECIAL[kind](path)
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    said = outcome(reader, path)

    assert said is not None
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib) / 1024 < MOST_MIB
    assert not (tmp_path / "owned").exists()


def test_a_name_that_stands_twice_is_refused(tmp_path):
    """One reader would take the first, another the last; a review would see one of them."""
    path = tmp_path / "night.json"
    text = json.dumps(document(row([0.1])))
    path.write_text(text.replace('"hardware_key"', '"hardware_key": "other", "hardware_key"'))

    with pytest.raises(BaselineError, match=r"night\.json is not readable JSON: an object has 'hardware_key' twice"):
        read(path)


@pytest.mark.parametrize(
    "key", ["../up", "/abs", "a/b", "..", ".", "", ".hidden", "a\nb", "\x1b[2J", "x" * 500, "a\0b"]
)
def test_a_hardware_key_leads_out_of_no_folder(tmp_path, key):
    """It names the folder that a night is stored in."""
    path = tmp_path / "result.json"
    path.write_text(json.dumps(document(row([0.1]), key=key)))

    with pytest.raises(BaselineError, match="which cannot name a folder"):
        read(path)
    with pytest.raises(BaselineError, match="cannot name a folder"):
        Baselines(tmp_path / "baselines").put("main", key, b"{}")


@pytest.mark.parametrize("name", READERS)
@given(data=st.data())
@settings(
    max_examples=max(15, settings.default.max_examples // 5),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    deadline=None,
)
def test_a_good_file_with_something_else_in_it(tmp_path, name, data):
    """Whatever stands in one place of it."""
    reader = READERS[name]
    path = tmp_path / "folder-of-it" / reader.name
    path.parent.mkdir(exist_ok=True)
    text = reader.good(tmp_path)
    path.write_bytes(data.draw(st.one_of(changed(text, by_line=reader.by_line), damaged(text.encode()))))

    outcome(reader, path)


@st.composite
def damaged(draw, content):
    """Bytes with some lost and some added."""
    for _ in range(draw(st.integers(1, 3))):
        where, lost = draw(st.integers(0, len(content))), draw(st.sampled_from([0, 1, 7, 5000]))
        content = content[:where] + draw(BYTES) + content[where + lost :]
    return content


@st.composite
def changed(draw, text, *, by_line):
    """JSON in which a few values, or names, are others."""
    try:
        documents = [json.loads(line) for line in text.splitlines()] if by_line else [json.loads(text)]
    except ValueError:
        return draw(damaged(text.encode()))
    for _ in range(draw(st.integers(1, 3))):
        places = [place for one in documents for place in _places(one)]
        container, key = draw(st.sampled_from(places))
        action = draw(st.sampled_from(["replace", "remove", "rename"]))
        if action == "remove":
            del container[key]
        elif action == "rename" and isinstance(container, dict):
            container[draw(st.text(max_size=8))] = container.pop(key)
        else:
            container[key] = copy.deepcopy(draw(NASTY))  # the next change may be within it
        if not any(_places(one) for one in documents):
            break
    return "\n".join(map(json.dumps, documents)).encode()


def _places(value):
    """Where a value stands, at every depth."""
    found, left = [], [value]
    while left:
        one = left.pop()
        items = list(one.items()) if isinstance(one, dict) else list(enumerate(one)) if isinstance(one, list) else []
        found += [(one, key) for key, _ in items]
        left += [inner for _, inner in items]
    return found


SHORT = st.text(max_size=3)
ANY_JSON = st.recursive(
    st.none() | st.integers() | SHORT, lambda inner: st.lists(inner) | st.dictionaries(SHORT, inner), max_leaves=10
)


@pytest.mark.slow
@given(ANY_JSON)
def test_any_json_is_what_it_was(value):
    """Looking for names that stand twice changes nothing."""
    assert value == json_of(json.dumps(value))


def test_the_key_of_the_good_night_names_a_folder(tmp_path):
    assert KEY == read(_written(tmp_path)).hardware_key


def _written(folder):
    path = folder / "night.json"
    path.write_text(json.dumps(document(row([0.1]))))
    return path
