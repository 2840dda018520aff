"""`vecmill benchmark bookkeeping`: planning, resume and publish at 10^5 and 10^6 splits, without reading a document.

The corpus is JSONL in files of 100 splits that exist in a listing only, as do the shards and all
records but the last 1,000, which no journal holds. Journals are real, written by the real Journal.
Every measurement has a process of its own, so that each peak is its own. Promise 9 is what it is held
against: at most 1 kB of the driver's memory a split.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import click

from jobs.machine import describe_machine
from pipeline.config import Config, parse_config
from pipeline.errors import NotSupportedError, VecmillError
from pipeline.planning import Plan, Planner
from pipeline.snapshots.commit import Publication, publish
from pipeline.snapshots.journal import Journal
from pipeline.snapshots.manifest import latest
from pipeline.snapshots.records import (
    Record,
    ShardFile,
    checksum,
    new_attempt,
    record_name,
    records_prefix,
    shard_name,
)
from pipeline.splits import InputFile, plan_file
from pipeline.uris import ObjectInfo, Storage

_T = TypeVar("_T")

_SPLITS_A_FILE = 100
_UNJOURNALLED = 1_000  # the last ones; of fewer splits, all
_SHARD_BYTES = 15_000_000
_DOCUMENTS = 10_000
_ENCODER_FP = "e" * 16
# What object storage answers a listing with, and so what a request for one costs.
_PAGE = 1_000


@click.command(name="bookkeeping")
@click.option("--splits", multiple=True, type=click.IntRange(min=20), help="Default: 100000 and 1000000.")
@click.option("--ray", "with_ray", is_flag=True, help="Through Ray instead, with an encoder that takes no time.")
@click.argument("overrides", nargs=-1, metavar="[key.path=value ...]")
def bookkeeping(splits: tuple[int, ...], with_ray: bool, overrides: tuple[str, ...]) -> None:
    """Planning, resume and publish of many splits: seconds, requests, peak memory.

    Requests are counted as object storage would: a listing is one for each 1,000 names. With --ray 10,000
    splits of one document go through the flow, with a real tokenizer (encoder.model) and real files.
    """
    click.echo(describe_machine())
    if with_ray:
        from jobs.bookkeeping_ray import measure_flow

        for num_splits in splits or (10_000,):
            click.echo(measure_flow(num_splits, overrides))
        return
    for num_splits in splits or (100_000, 1_000_000):
        with TemporaryDirectory(prefix="vecmill-benchmark-") as folder:
            click.echo(f"\n{num_splits:,} splits\n{HEADER}")
            for name in MEASURES:
                click.echo(str(in_own_process(_measure, name, folder, num_splits)))


@dataclass(frozen=True)
class Cost:
    """What one measurement came to."""

    name: str
    seconds: float
    requests: int
    peak_bytes: int
    """Above what was there before."""
    num_splits: int

    def __str__(self) -> str:
        return (
            f"{self.name:<44} {self.seconds:>8.1f} {self.requests:>9,} {self.peak_bytes / 2**20:>8.0f} "
            f"{self.peak_bytes / self.num_splits:>8.0f}"
        )


HEADER = f"{'':<44} {'seconds':>8} {'requests':>9} {'MiB':>8} {'B/split':>8}"


def in_own_process(function: Callable[..., _T], *arguments: object) -> _T:
    """Call it in a process that has done nothing else."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


@contextmanager
def peak_memory() -> Iterator[Callable[[], int]]:
    """Gives a function that tells how many bytes more than at the start have been resident at most.

    Raises:
        NotSupportedError: not on Linux.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    except OSError:
        raise NotSupportedError("peak memory on another system than Linux") from None
    before = _resident("VmRSS")
    yield lambda: _resident("VmHWM") - before


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


class ListedStore(Storage):
    """A local store in which records and shards are in listings, but (nearly) none on disk; counts requests.

    It lists the first `num_splits` attempts of `attempts.txt`, of which every `step`-th was made.
    Journals, manifests, and the records that no journal holds are real objects.
    """

    def __init__(self, folder: str, shard_fp: str, num_splits: int, step: int = 1) -> None:
        super().__init__(f"{folder}/store")
        self._attempts = Path(folder) / "attempts.txt"
        self._shard_fp = shard_fp
        self._num_splits = num_splits
        self._step = step
        self.requests = 0

    def scan(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """As storage's, page by page."""
        for index, info in enumerate(self._scan(prefix)):
            self.requests += index % _PAGE == 0
            yield info

    def _scan(self, prefix: str) -> Iterator[ObjectInfo]:
        if prefix == records_prefix(_ENCODER_FP, self._shard_fp):
            for split_id, attempt in self._made():
                yield ObjectInfo(f"{prefix}/{split_id[:2]}/{split_id}-0-{attempt}.json", 900, "", "etag")
        elif prefix == f"embeddings/{_ENCODER_FP}/{self._shard_fp}":
            for split_id, attempt in self._made():
                name = f"{prefix}/{split_id[:2]}/{split_id}-{attempt}.parquet"
                yield ObjectInfo(name, _SHARD_BYTES, "", "etag")
        else:
            yield from super().scan(prefix)

    def _made(self) -> Iterator[tuple[str, str]]:
        with self._attempts.open() as lines:
            for index, line in zip(range(self._num_splits), lines, strict=False):
                if index % self._step == 0:
                    yield line[:32], line[33:49]

    def read(self, name: str) -> bytes:
        """One request."""
        self.requests += 1
        return super().read(name)

    def put(self, name: str, data: bytes) -> None:
        """One request."""
        self.requests += 1
        super().put(name, data)

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """One request."""
        self.requests += 1
        return super().put_if_absent(name, data)


def _config(folder: str) -> Config:
    return parse_config(
        {
            "input": {"uri": f"{folder}/corpus", "text": "{text}"},
            "store": {"uri": f"{folder}/store"},
            "encoder": {"model": "none"},
        }
    )


def _files(config: Config, num_splits: int) -> list[InputFile]:
    """Files of so many splits; the first is there, since its columns are looked at, and is one split."""
    source = Storage(config.input.uris[0])
    [first] = [InputFile(info.name, info.size, info.identity, info.identity_kind) for info in source.list()]
    size = plan_file(source, _file(1, 2**40), config.splits, None)[0].num_bytes
    sizes = [min(_SPLITS_A_FILE, num_splits - begin) * size for begin in range(1, num_splits, _SPLITS_A_FILE)]
    return [first, *(_file(index, num_bytes) for index, num_bytes in enumerate(sizes, 1))]


def _file(index: int, size: int) -> InputFile:
    return InputFile(f"part={index // 1000:04}/{index:08}.jsonl", size, f"{index:032x}", "etag")


def _prepare(folder: str, num_splits: int) -> Cost:
    """Make what an earlier run leaves; what is timed is its journal alone."""
    config = _config(folder)
    (Path(folder) / "corpus").mkdir()
    (Path(folder) / "corpus" / "0.jsonl").write_text('{"text": "a"}\n')
    source, shard_fp = Storage(config.input.uris[0]), config.shard_fingerprint({})
    store = ListedStore(folder, shard_fp, 0)
    journal, seconds = Journal(store, "run-1"), 0.0
    with peak_memory() as peak, (Path(folder) / "attempts.txt").open("w") as attempts:
        index = 0
        for file in _files(config, num_splits):
            for split in plan_file(source, file, config.splits, None):
                record = _record(file, split.begin, split.end or 0, bool(split.last), split.split_id, shard_fp)
                attempts.write(f"{record.split_id} {record.attempt}\n")
                index += 1
                if index > num_splits - _UNJOURNALLED:
                    Storage.put(store, record_name(record), record.to_json())
                    continue
                started = time.monotonic()
                journal.add(record)
                seconds += time.monotonic() - started
        journal.close()
        return Cost("journal, record by record as a flow does", seconds, store.requests, peak(), num_splits)


def _record(file: InputFile, begin: int, end: int, last: bool, split_id: str, shard_fp: str) -> Record:
    attempt = new_attempt()
    name = shard_name(_ENCODER_FP, shard_fp, split_id, attempt)
    return Record(
        split_id=split_id,
        generation=0,
        attempt=attempt,
        run_id="20261122T120000-0123456789abcdef",
        encoder_fp=_ENCODER_FP,
        shard_fp=shard_fp,
        file_uri=file.uri,
        file_id=file.file_id,
        identity=file.identity,
        identity_kind=file.identity_kind,
        begin=begin,
        end=end,
        last=last,
        row_begin=None,
        row_end=None,
        num_documents=_DOCUMENTS,
        num_counted=_DOCUMENTS,
        num_quarantined=0,
        num_reused=0,
        num_truncated=12,
        num_tokens=500_000,
        num_padded_tokens=506_000,
        compute="bfloat16",
        shard=ShardFile(name, _SHARD_BYTES, checksum(name.encode()), _DOCUMENTS, 1234),
        quarantine=None,
        reasons={},
    )


def _measure(name: str, folder: str, num_splits: int) -> Cost:
    if name == "journal":
        return _prepare(folder, num_splits)
    config = _config(folder)
    num_listed, step = {"fresh": (0, 1), "half": (num_splits, 2), "night": (num_splits + 1, 1)}.get(
        name, (num_splits, 1)
    )
    store = ListedStore(folder, config.shard_fingerprint({}), num_listed, step)
    added = _file(10**7, 1)
    if name == "night":
        _put_record(store, folder, added)
    with peak_memory() as peak:
        started = time.monotonic()
        files = _files(config, num_splits)
        planner = Planner(config, None, Storage(config.input.uris[0]), _ENCODER_FP, store, latest(store))
        if name in ("again", "night"):  # a file was added since: all of the parent is carried
            files.append(added)
        plan = planner.plan(files)
        if name in ("publish", "night"):
            requests, started = store.requests, time.monotonic()
            publish(store, _publication(planner, plan))
            store.requests -= requests
        elif name == "current" and not (planner.parent and planner.is_current(plan, planner.parent)):
            raise VecmillError("what was published is not current. This is a bug.")
        seconds = time.monotonic() - started
        _check(name, plan, num_splits)
        return Cost(MEASURES[name], seconds, store.requests, peak(), num_splits)


def _put_record(store: ListedStore, folder: str, file: InputFile) -> None:
    [split] = plan_file(store, file, _config(folder).splits, None)
    record = _record(file, 0, file.size, True, split.split_id, _config(folder).shard_fingerprint({}))
    Storage.put(store, record_name(record), record.to_json())
    with (Path(folder) / "attempts.txt").open("a") as attempts:
        attempts.write(f"{record.split_id} {record.attempt}\n")


def _check(name: str, plan: Plan, num_splits: int) -> None:
    """What was measured is what is said."""
    num_left = {"fresh": num_splits, "half": num_splits // 2, "again": 1}.get(name, 0)
    num_recorded = {"all": num_splits, "publish": num_splits, "night": 1}.get(name, 0)
    if len(plan.work) != num_left or (len(plan.recorded) != num_recorded and name != "half"):
        raise VecmillError(f"{name}: {len(plan.work)} splits left, {len(plan.recorded)} recorded. This is a bug.")


def _publication(planner: Planner, plan: Plan) -> Publication:
    return Publication(
        run_id="20261122T120000-0123456789abcdef",
        parent=planner.parent,
        files=plan.file_ids,
        records=plan.recorded,
        carried=plan.carried,
        encoder={},
        encoder_fp=planner.encoder_fp,
        shard_fp=plan.shard_fp,
        keep={},
        config={},
        versions={},
    )


# In the order in which they need each other.
MEASURES = {
    "journal": "journal, record by record as a flow does",
    "fresh": "plan a corpus of which nothing is recorded",
    "half": "resume: every second record is gone",
    "all": "resume: all are recorded",
    "publish": "publish (memory: with its plan)",
    "current": "plan after publish: nothing to do",
    "again": "plan after publish: one file is new",
    "night": "publish with it (memory: with its plan)",
}
