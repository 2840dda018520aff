"""Small corpora in every format, a job over one of them, and its commands run in this process."""

from __future__ import annotations

import gzip
import io
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
import zstandard

from jobs.cli import exit_code, vecmill
from pipeline.snapshots.reader import Snapshot, open_snapshot
from pipeline.uris import Storage

Row = dict[str, Any]

_NOUNS = ["river", "engine", "letter", "orchard", "signal", "winter", "harbour", "protein", "ledger", "comet"]
_VERBS = ["carries", "follows", "breaks", "feeds", "measures", "hides", "repairs", "crosses"]


def make_rows(num: int, *, begin: int = 0, words: int = 0) -> list[Row]:
    """Documents with columns id, title, body, lang, year; no two alike.

    Args:
        num: how many.
        begin: number of the first, which is part of its id and text.
        words: length of the body; 0: some 4 to 40 words, by document.
    """
    rows = []
    for number in range(begin, begin + num):
        length = words or 4 + number * 7 % 37
        body = [
            (_NOUNS if step % 2 else _VERBS)[(number + step * 3) % (10 if step % 2 else 8)] for step in range(length)
        ]
        rows.append(
            {
                "id": f"d{number}",
                "title": f"The {_NOUNS[number % 10]} number {number}",
                "body": " ".join(body),
                "lang": ["en", "de", None][number % 3],
                "year": 1900 + number,
            }
        )
    return rows


def texts_of(rows: Iterable[Row]) -> list[str]:
    """What the template `{title}. {body}` makes of rows."""
    return [f"{row['title']}. {row['body']}" for row in rows]


def parquet_bytes(rows: Sequence[Row], row_group_size: int = 20) -> bytes:
    """A Parquet file."""
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), sink, row_group_size=row_group_size)
    return sink.getvalue()


def jsonl_bytes(rows: Iterable[Row]) -> bytes:
    """Lines of JSON."""
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def file_bytes(name: str, rows: Sequence[Row]) -> bytes:
    """Rows as a file of the format that its name says."""
    if name.endswith(".parquet"):
        return parquet_bytes(rows)
    data = jsonl_bytes(rows)
    if name.endswith(".gz"):
        return gzip.compress(data)
    return zstandard.compress(data) if name.endswith(".zst") else data


def put_files(corpus: Storage, files: Mapping[str, Sequence[Row] | bytes]) -> None:
    """Put files, given as rows or as bytes."""
    for name, content in files.items():
        corpus.put(name, content if isinstance(content, bytes) else file_bytes(name, content))


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str
    """Messages and log."""

    @property
    def outcome(self) -> dict[str, Any]:
        """The JSON line of `embed`."""
        value = json.loads(self.out.splitlines()[-1])
        assert isinstance(value, dict)
        return value

    @property
    def sentence(self) -> str:
        """The last line on stderr."""
        return self.err.strip().splitlines()[-1]


def run_command(*args: str) -> Ran:
    """`vecmill ARGS` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = exit_code(vecmill, args)
    sys.stderr.write(err.getvalue())  # pytest shows it if the test fails
    return Ran(code, out.getvalue(), err.getvalue())


@dataclass
class Job:
    """A corpus, a store and a config between them; `config` may be changed before each command."""

    folder: Path
    """Holds the config file."""
    corpus: Storage
    store: Storage
    config: dict[str, Any]
    store_options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def local(cls, folder: Path, model: Path, **changes: Any) -> Job:
        """A job over two local folders, which need not exist; `changes` are sections of the config."""
        corpus, store = Storage(str(folder / "in")), Storage(str(folder / "store"))
        return cls(folder, corpus, store, make_config(corpus.uri, store.uri, model, **changes))

    @classmethod
    def on_s3(cls, folder: Path, uri: str, options: dict[str, Any], model: Path, **changes: Any) -> Job:
        """A job over two prefixes below `uri`; `folder` holds its config."""
        corpus, store = Storage(f"{uri}/in", options), Storage(f"{uri}/store", options)
        config = make_config(corpus.uri, store.uri, model, **changes)
        for section in ("input", "store"):
            config[section]["storage_options"] = options
        return cls(folder, corpus, store, config, options)

    @property
    def config_path(self) -> str:
        """The config file, as `config` is now."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "job.yaml"
        path.write_text(yaml.safe_dump(self.config), encoding="utf-8")
        return str(path)

    def embed(self, *args: str) -> Ran:
        """`vecmill embed CONFIG ARGS`."""
        return run_command("embed", self.config_path, *args)

    def published(self, *args: str) -> dict[str, Any]:
        """The outcome of an `embed` that must succeed."""
        ran = self.embed(*args)
        assert ran.code == 0, ran.err
        return ran.outcome

    def snapshot(self) -> Snapshot:
        """The current snapshot."""
        return open_snapshot(self.store.uri, self.store_options)

    def manifests(self) -> list[str]:
        """Names of the manifests in the store."""
        return [info.name for info in self.store.list("snapshots") if info.name.endswith(".json")]

    def records(self) -> list[str]:
        """Names of the records in the store: what is done stays under its name."""
        return [info.name for info in self.store.list("records")]

    def doc_ids(self) -> list[str]:
        """The ids of the current snapshot, in the order of its shards."""
        ids: list[str] = self.snapshot().dataset().to_table(columns=["doc_id"])["doc_id"].to_pylist()
        return ids


def make_config(input_uri: str, store_uri: str, model: Path | str, **changes: Any) -> dict[str, Any]:
    """A config over the columns of `make_rows`; `changes` are merged into its sections."""
    config: dict[str, Any] = {
        "input": {"uri": input_uri, "id": "id", "text": "{title}. {body}"},
        "store": {"uri": store_uri},
        "encoder": {"model": str(model)},
        # One encoder on the shared Ray of four CPUs: loading a model is what takes time here.
        "cluster": {"encoders": 1},
    }
    for section, values in changes.items():
        config.setdefault(section, {}).update(values)
    return config
