"""Coverage-guided fuzzing of everything that reads files from strangers: `python benchmarks/fuzz.py READER SECONDS`.

Needs atheris (`pip install atheris`; Python up to 3.13). What it finds is printed with the input and ends it; an input
worth keeping belongs into tests/test_hostile_files.py. Without arguments the readers are listed.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


def main():
    import atheris  # noqa: PLC0415 - nobody else needs it

    with atheris.instrument_imports(include=["pytest_llmperf"]):
        from readers import READERS  # noqa: PLC0415 - what is imported here is instrumented

    if len(sys.argv) != 3 or sys.argv[1] not in READERS:
        sys.exit(f"usage: fuzz.py READER SECONDS; readers: {', '.join(READERS)}")
    reader, seconds = READERS[sys.argv[1]], int(sys.argv[2])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "given" / reader.name
        path.parent.mkdir()
        corpus = folder / "corpus"
        corpus.mkdir()
        (corpus / "good").write_text(reader.good(folder))

        def one(data):
            path.write_bytes(data)
            try:
                reader.read(path)
            except reader.errors as error:
                if len(str(error)) > 3000:
                    raise ValueError("a complaint as long as that is no sentence") from error

        limits = [f"-max_total_time={seconds}", "-max_len=65536", "-rss_limit_mb=2048", "-timeout=10"]
        atheris.Setup([sys.argv[0], *limits, str(corpus)], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
