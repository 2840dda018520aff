"""The processes of a round: the command itself, a Ray head that rounds share, a cluster whose nodes can die.

All that comes of one start carries a mark in its environment; which process does what is told by
the title that Ray gives it. Nothing here is ever ended by name: a process is found by mark and
title, and killed by its pid.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

ROOT = Path(__file__).parents[2]
NUM_CPUS = 4

_MARK = "VECMILL_CHAOS_MARK"


class Role(StrEnum):
    """What a process does, by what its command line contains."""

    READER = "MapBatches(ReadStage)"
    ENCODER = "MapBatches(EncodeStage)"
    WRITER = "MapBatches(WriteStage)"
    RAYLET = "/raylet/raylet"
    GCS = "/gcs/gcs_server"


def environment(mark: str) -> dict[str, str]:
    """No setting of AWS or Ray but ours; `python` and `ray` are this interpreter's, the code is this tree's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))}
    path = f"{Path(sys.executable).parent}:{kept['PATH']}"
    return kept | {"PATH": path, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled", _MARK: mark}


def marked(mark: str) -> list[psutil.Process]:
    """All processes that carry the mark."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(_MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            pass
    return found


def with_role(processes: Iterable[psutil.Process], *roles: Role) -> list[int]:
    """The pids of those that have one of the roles now."""
    pids = []
    for process in processes:
        try:
            line = " ".join(process.cmdline()[:2])
        except psutil.Error:
            continue
        if any(role in line for role in roles):
            pids.append(process.pid)
    return pids


def kill_now(pids: Iterable[int], number: signal.Signals = signal.SIGKILL) -> int:
    """Kill, and return once they are gone (after SIGKILL); how many there were."""
    num = 0
    for pid in pids:
        try:
            process = psutil.Process(pid)
            os.kill(pid, number)
        except (psutil.Error, ProcessLookupError):
            continue
        num += 1
        deadline = time.monotonic() + (5 if number is signal.SIGKILL else 0)
        while time.monotonic() < deadline and _is_there(process):
            time.sleep(0.002)
    return num


def _is_there(process: psutil.Process) -> bool:
    try:
        # The main thread ends first: until the last one has, files and sockets of the process are open.
        is_zombie = process.status() == psutil.STATUS_ZOMBIE
        return process.is_running() and not (is_zombie and len(os.listdir(f"/proc/{process.pid}/task")) <= 1)
    except (psutil.Error, OSError):
        return False


def end_all(mark: str, first: subprocess.Popen[bytes]) -> None:
    """Leave no process of a start: neither the first nor what came of it."""
    kill_now(process.pid for process in marked(mark))
    first.kill()
    first.wait()


def free_port() -> int:
    """A port of loopback that nobody has now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Command:
    """`python -m jobs.<job> ...` in a process of its own, with its stderr in a file."""

    def __init__(self, args: list[str], folder: Path) -> None:
        self.mark = uuid.uuid4().hex
        self._err = folder / f"{time.time_ns()}.err"
        with self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *args],
                stdout=subprocess.PIPE,
                stderr=err,
                env=environment(self.mark),
                cwd=ROOT,
                start_new_session=True,
            )
        self.started = time.monotonic()

    @property
    def err(self) -> str:
        """What it wrote to stderr so far."""
        return self._err.read_text(errors="replace")

    def wait(self, timeout_s: float) -> int | None:
        """Its exit code; None: it has not ended in time, and was killed with all that came of it."""
        try:
            self.process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.end()
            return None
        return self.process.returncode

    def end(self) -> None:
        """Whatever happened: leave no process."""
        end_all(self.mark, self.process)
        if self.process.stdout is not None:
            self.process.stdout.close()


class RayHead:
    """A Ray of four logical CPUs that outlives the commands which connect to it."""

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex
        port, agent, client = (free_port() for _ in range(3))
        self._folder = Path(f"/tmp/vecmill-chaos-{port}")
        command = ["ray", "start", "--head", "--block", f"--port={port}", f"--num-cpus={NUM_CPUS}"]
        command += ["--disable-usage-stats", "--node-ip-address=127.0.0.1", "--include-dashboard=false"]
        command += [f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"]
        command += [f"--temp-dir={self._folder}"]
        self._process = subprocess.Popen(
            command,
            env=environment(self.mark),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.address = f"127.0.0.1:{port}"
        _wait_until_it_listens(port, self._process)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        end_all(self.mark, self._process)
        shutil.rmtree(self._folder, ignore_errors=True)


def _wait_until_it_listens(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        if process.poll() is not None:
            raise RuntimeError(f"the Ray head ended with {process.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.2)
        else:
            time.sleep(2)  # the raylet comes after the port
            return
    raise RuntimeError("the Ray head does not listen")


class Nodes:
    """A cluster on this machine: a head of one CPU, and a node of three, which gets the encoder and may be lost."""

    def __init__(self, folder: Path) -> None:
        self.mark = uuid.uuid4().hex
        self._lock = threading.Lock()
        with (folder / "nodes.err").open("wb") as err:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.nodes"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=err,
                env=environment(self.mark),
                cwd=ROOT,
                start_new_session=True,
            )
        started = self._answer()
        self.address = str(started["address"])
        self._raylet = int(started["raylet"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        end_all(self.mark, self._process)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(b"{"):
                answer = json.loads(line)
                assert isinstance(answer, dict)
                return answer
        raise RuntimeError("the cluster of two nodes ended")

    def preempt(self) -> None:
        """Kill the node with all that runs on it, and add one in its place."""
        with self._lock:
            try:
                raylet = psutil.Process(self._raylet)
                lost = [raylet, *raylet.children(recursive=True)]
            except psutil.Error:
                lost = []
            kill_now(process.pid for process in lost)
            assert self._process.stdin is not None
            self._process.stdin.write(b"add\n")
            self._process.stdin.flush()
            self._raylet = int(self._answer()["raylet"])
