"""One arena for all rounds: an S3 server behind the proxy, a corpus, and what a clean run makes of it.

A round is a fresh bucket with the corpus, and an edge: something that goes wrong, once or often,
while the real command runs as a subprocess. Then the same command is run until it exits with 0,
`vecmill verify` audits the store, and the snapshot is held against a clean run's:

    lost             rows of the clean run that are not there
    doubled          rows that are there more than once
    foreign          rows that the clean run does not have
    strayed          rows whose vector is not the clean run's (cosine below 0.9999)
    rewritten        names of the store, apart from run.json, that were stored with several contents
    encoded again    shards put of a split that had been put before, beyond the splits in work at the
                     kills (at most 3 an encoder and one a reader), and every shard of a split that was
                     recorded before the command started that encoded it

The proxy has seen all requests, so the last line needs no word of the command's own.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
import signal
import time
import traceback
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline.snapshots.reader import open_snapshot
from pipeline.uris import Storage
from tests.chaos.documents import NUM_SPLITS, SPLIT_ROWS, corpus_files
from tests.chaos.judging import Clean, Found, differences, encoded_again, recorded, rewritten, rows_of
from tests.chaos.processes import Command, Nodes, RayHead, Role, kill_now, marked, with_role
from tests.chaos.proxy import Action, Exchange, Moment, Proxy, Trigger, Verdict
from tests.corpus import Job, run_command
from tests.models import minilm_path

NUM_READERS = 2
"""Tasks that fit beside the encoder into four CPUs."""
IN_FLIGHT_A_KILL = 3 + NUM_READERS

RUN_TIMEOUT_S = 900.0  # 20 nodes take 260 s on a machine that does nothing else
_MAX_RUNS = 8

_GO_ON = (75, -signal.SIGKILL, 128 + signal.SIGINT, 128 + signal.SIGTERM)
"""Ends after which the same command goes on."""


@dataclass
class Outcome:
    """What a round came to; a line of the campaign's results."""

    edge: str
    kind: str
    counts: bool = False
    """Whether what was to happen happened; a round that does not count is repeated."""
    ok: bool = False
    exits: list[int | None] = field(default_factory=list)
    """Exit codes of the commands, in order; None: it was stuck."""
    said: list[str] = field(default_factory=list)
    """The last line of each command that ended with another code than 0."""
    kills: int = 0
    in_work: int = 0
    """Splits that were neither recorded nor untouched at the first kill; from the proxy, and at most the bound."""
    faults: dict[str, int] = field(default_factory=dict)
    lost: int = 0
    doubled: int = 0
    foreign: int = 0
    strayed: int = 0
    rewritten: int = 0
    quarantined_more: int = 0
    encoded_again: int = 0
    encoded_twice: int = 0
    """Shards put of splits that had been put before, within the bound or not."""
    verified: str = ""
    seed: int | None = None
    seconds: float = 0.0
    error: str = ""


class UnexpectedError(Exception):
    """The command did what it must not."""


class Arena:
    """All that rounds share.

    Args:
        folder: for configs, logs, and the mount of the full disk.
    """

    def __init__(self, folder: Path) -> None:
        from moto.server import ThreadedMotoServer

        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._stack = ExitStack()
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.proxy = Proxy((host, port)).start()
        self._direct = f"http://{host}:{port}"
        self._head: RayHead | None = None
        self._clean: dict[int, Clean] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()
        self.proxy.stop()
        self._server.stop()

    @property
    def head(self) -> RayHead:
        """The Ray that rounds share, started at first use."""
        if self._head is None:
            self._head = self._stack.enter_context(RayHead())
        return self._head

    def options(self, *, through_proxy: bool = True) -> dict[str, Any]:
        """fsspec's options for the S3 server."""
        endpoint = self.proxy.endpoint if through_proxy else self._direct
        region = {"region_name": "us-east-1"}
        return {"key": "testing", "secret": "testing", "endpoint_url": endpoint, "client_kwargs": region}

    def clean(self, version: int = 1) -> Clean:
        """What a clean run makes of a version of the corpus; made at first use."""
        if version not in self._clean:
            with self.round("clean run", "clean", version=version) as round_:
                round_.until_published(max_runs=1)
                found, num_quarantined = round_.found()
                self._clean[version] = Clean(
                    {key: vectors[0] for key, vectors in found.items()}, num_quarantined, len(round_.job.records())
                )
        return self._clean[version]

    @contextmanager
    def round(self, name: str, kind: str, *, version: int = 1) -> Iterator[Round]:
        """A round over a fresh bucket; its processes end with it."""
        urllib.request.urlopen(urllib.request.Request(f"{self._direct}/moto-api/reset", method="POST")).close()
        self.proxy.clear()
        folder = self.folder / f"{time.time_ns()}-{name.replace(' ', '-').replace('/', '-')}"
        folder.mkdir()
        round_ = Round(self, folder, Outcome(name, kind), version)
        try:
            yield round_
        finally:
            round_.end()

    def make_bucket(self) -> str:
        """The name of a fresh bucket."""
        bucket = f"chaos-{uuid.uuid4().hex[:12]}"
        request = urllib.request.Request(f"{self._direct}/{bucket}", method="PUT")
        urllib.request.urlopen(request).close()
        return bucket


class Round:
    """One corpus, one store, and the commands run on them."""

    def __init__(self, arena: Arena, folder: Path, outcome: Outcome, version: int) -> None:
        self.arena, self.folder, self.outcome, self.version = arena, folder, outcome, version
        self.proxy = arena.proxy
        self.proxy.bucket = self.bucket = arena.make_bucket()
        self.job = Job.on_s3(
            folder,
            f"s3://{self.bucket}",
            arena.options(),
            minilm_path(),
            splits={"max_rows": SPLIT_ROWS},
            encoder={"compute": "float32"},
        )
        # What the harness itself reads and puts goes past the proxy.
        direct = arena.options(through_proxy=False)
        self.corpus = Storage(self.job.corpus.uri, direct)
        self.job.store, self.job.store_options = Storage(self.job.store.uri, direct), direct
        self.put_corpus(version)
        self.commands: list[Command] = []
        self.started_at: list[int] = []
        """How many requests the proxy had seen at the start of each command."""
        self.allowed_again = 0
        """Splits that may be encoded again: those in work at each kill, or what an edge adds for its own reasons."""
        self.knows_less = False
        """Whether gc ran, or records were hidden: then what had been recorded may be encoded again."""
        self.nodes: Nodes | None = None
        self._holds: list[Callable[[], object]] = []

    def put_corpus(self, version: int, *names: str) -> None:
        """Put files of the corpus (all, or those named), as a version has them."""
        self.version = version
        for name, data in corpus_files(version).items():
            if not names or name in names:
                self.corpus.put(name, data)

    # What happens to requests

    def arm(self, pattern: str, moment: Moment, action: Action, **options: Any) -> Trigger:
        """Arm a trigger on names below the round's bucket."""
        trigger = Trigger(pattern, moment, action, **options)
        self.proxy.triggers.append(trigger)
        return trigger

    def release_at_end(self, release: Callable[[], object]) -> None:
        """Call it when the round ends, whatever happened: what is held must not stay so."""
        self._holds.append(release)

    def killer(self, *roles: Role, number: signal.Signals = signal.SIGKILL, drops: bool = False) -> Action:
        """An action that kills the current command (no roles), or all processes of these roles.

        Args:
            roles: none is the driver; where no process has one now, a later request is waited for.
            number: the signal.
            drops: the request dies with its client.
        """

        def act(exchange: Exchange) -> Verdict:
            pids = with_role(self.processes(), *roles) if roles else [self.commands[-1].process.pid]
            if not pids:
                return Verdict.DISARM
            self.note_kill()
            kill_now(pids, number)
            return Verdict.DROP if drops else Verdict.PASS

        return act

    def processes(self) -> Any:
        """All processes of the current command, and of the Ray that it runs on."""
        found = marked(self.commands[-1].mark)
        if self.nodes is not None:
            return found + marked(self.nodes.mark)
        return found + (marked(self.arena.head.mark) if self.job.config["cluster"].get("address") else [])

    def note_kill(self) -> None:
        """Note that something is killed now, and what was in work."""
        is_flowing = bool(with_role(self.processes(), Role.READER, Role.ENCODER, Role.WRITER))
        left = NUM_SPLITS - len(recorded(self.proxy.exchanges)) if is_flowing else 0
        in_work = max(0, min(left, IN_FLIGHT_A_KILL))
        self.allowed_again += in_work
        if self.outcome.kills == 0:
            self.outcome.in_work = in_work
        self.outcome.kills += 1

    # Commands

    def start(self, job: str = "embed", *args: str, on: str | None = "head") -> Command:
        """Start `vecmill JOB CONFIG ARGS`. On "head": the shared Ray; on "nodes": the round's own; None: in place."""
        if on == "head":
            self.job.config["cluster"]["address"] = self.arena.head.address
        elif on == "nodes":
            assert self.nodes is not None
            self.job.config["cluster"]["address"] = self.nodes.address
        else:
            self.job.config["cluster"].pop("address", None)
        self.started_at.append(len(self.proxy.exchanges))
        self.commands.append(Command([f"jobs.{job}", self.job.config_path, *args], self.folder))
        return self.commands[-1]

    def wait(self, command: Command | None = None, timeout_s: float = RUN_TIMEOUT_S) -> int:
        """The exit code of a command (the last), noted; that it is stuck or crashes is a defect of its own."""
        command = command or self.commands[-1]
        code = command.wait(timeout_s)
        self.outcome.exits.append(code)
        if code != 0 and command.err.strip():
            self.outcome.said.append(command.err.strip().splitlines()[-1][:400])
        if code is None:
            raise UnexpectedError(f"stuck: not at its end after {timeout_s:.0f} s; {command.err[-600:]}")
        if code in (1, 2) or "Traceback" in command.err:
            raise UnexpectedError(f"exit {code}: {command.err[-1500:]}")
        return code

    def until_published(self, *, on: str | None = "head", max_runs: int = _MAX_RUNS) -> int:
        """Run the command until it exits with 0; how many runs that took."""
        for number in range(1, max_runs + 1):
            self.start(on=on)
            code = self.wait()
            if code == 0:
                return number
            if code not in _GO_ON:
                raise UnexpectedError(f"exit {code} where 0 or 75 was to come: {self.commands[-1].err[-1500:]}")
        raise UnexpectedError(f"not published after {max_runs} runs: {self.commands[-1].err[-1500:]}")

    # What is there in the end

    def found(self) -> tuple[Found, int]:
        """Vectors of the current snapshot by (doc_id, chunk_index, content_hash), and its quarantined documents."""
        snapshot = open_snapshot(self.job.store.uri, self.job.store_options)
        return rows_of(snapshot), int(snapshot.manifest.accounting.quarantined)

    def judge(self) -> None:
        """Hold the snapshot against the clean run's, and have it verified."""
        outcome, clean = self.outcome, self._clean
        found, num_quarantined = self.found()
        for name, num in differences(found, clean).items():
            setattr(outcome, name, num)
        outcome.quarantined_more = num_quarantined - clean.num_quarantined
        outcome.encoded_twice, again = encoded_again(self.proxy.exchanges, self.started_at)
        again = 0 if self.knows_less else again
        beyond = outcome.encoded_twice - again - self.allowed_again
        outcome.encoded_again = again + max(0, beyond)
        outcome.rewritten = rewritten(self.proxy.exchanges)
        outcome.verified = self.verified()
        bad = [name for name in _MUST_BE_ZERO if getattr(outcome, name)]
        if bad:
            raise UnexpectedError(", ".join(f"{name}: {getattr(outcome, name)}" for name in bad))
        if outcome.verified not in ("ok", "no verify"):
            raise UnexpectedError(f"verify: {outcome.verified}")

    @property
    def _clean(self) -> Clean:
        return self.arena._clean[self.version]

    def verified(self) -> str:
        """What `vecmill verify` says of the store: "ok", or its sentence."""
        from jobs.cli import JOBS

        if "verify" not in JOBS:
            return "no verify"
        with contextlib.redirect_stderr(io.StringIO()):
            self.proxy.triggers = []
            ran = run_command("verify", self.job.config_path)
        return "ok" if ran.code == 0 else f"exit {ran.code}: {ran.out[-600:]} {ran.err[-600:]}"

    def end(self) -> None:
        """Leave nothing: no held request, no process, no log of what went well."""
        for release in self._holds:
            release()
        self.proxy.triggers = []
        for command in self.commands:
            command.end()
        if self.nodes is not None:
            self.nodes.__exit__(None, None, None)
        if self.outcome.ok or self.outcome.kind == "clean":
            shutil.rmtree(self.folder, ignore_errors=True)


_MUST_BE_ZERO = ("lost", "doubled", "foreign", "strayed", "rewritten", "quarantined_more", "encoded_again")


def play(arena: Arena, name: str, kind: str, edge: Callable[[Round], None], *, seed: int | None = None) -> Outcome:
    """Play an edge in a round of its own; never raises for what the command does."""
    for version in (1, 2) if kind == "input" else (1,):
        arena.clean(version)
    started = time.monotonic()
    with arena.round(name, kind) as round_:
        outcome = round_.outcome
        outcome.seed = seed
        try:
            edge(round_)
            round_.judge()
            outcome.ok = True
        except UnexpectedError as error:
            outcome.error = f"{error} [{round_.folder}]"
        except Exception:
            outcome.error = f"{traceback.format_exc()[-2000:]} [{round_.folder}]"
        outcome.faults = dict(arena.proxy.faults)
        outcome.seconds = round(time.monotonic() - started, 1)
        if not outcome.ok:
            (round_.folder / "outcome.json").write_text(json.dumps(asdict(outcome), indent=1))
    return outcome
