"""Fuzz a reader by what its code covers: ``by_coverage.py READER FOLDER SECONDS``."""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    import atheris

    with atheris.instrument_imports(include=["torchkeep"]):
        from tests.fuzz.readers import READERS, read

    name, folder, seconds = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    reader, corpus = READERS[name], folder / "corpus"
    corpus.mkdir()
    (corpus / "good").write_bytes(reader.good)
    reader.prepare(folder)
    atheris.Setup(
        [sys.argv[0], f"-max_total_time={seconds}", "-max_len=600", f"-artifact_prefix={folder}/", str(corpus)],
        lambda data: read(reader.put(folder, data)) and None,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
