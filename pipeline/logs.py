"""Log lines: every one says which run, and which split if one is in work; as text or as JSON."""

from __future__ import annotations

import logging
import sys
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

from pythonjsonlogger.json import JsonFormatter

LogFormat = Literal["text", "json"]

_OWN_LOGGERS = ("pipeline", "jobs", "vecmill")

# One run a process: threads of their own (lease, progress) must know it too. A split is its thread's.
_run_id = "-"
_split_id: ContextVar[str] = ContextVar("split_id", default="-")


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to what stderr is at the moment, with the ids on each record."""

    def __init__(self, format: LogFormat) -> None:
        super().__init__(sys.stderr)
        self.format_name = format
        if format == "json":
            names = {"asctime": "time", "levelname": "level", "name": "logger"}
            fields = "%(asctime)s %(levelname)s %(name)s %(run_id)s %(split_id)s %(message)s"
            self.setFormatter(
                JsonFormatter(fields, rename_fields=names, datefmt="%Y-%m-%dT%H:%M:%S%z", json_ensure_ascii=False)
            )
        else:
            line = "%(asctime)s %(levelname)s %(name)s [run %(run_id)s split %(split_id)s] %(message)s"
            self.setFormatter(logging.Formatter(line))

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        record.run_id, record.split_id = _run_id, _split_id.get()
        super().emit(record)


_handler: _Handler | None = None


def set_up_logging(format: LogFormat = "text") -> None:
    """Log to stderr: Vecmill's own lines from info up, libraries' from warnings up.

    A second call changes the format.
    """
    global _handler
    root = logging.getLogger()
    if _handler is not None:
        root.removeHandler(_handler)
    _handler = _Handler(format)
    root.addHandler(_handler)
    root.setLevel(logging.WARNING)
    for name in _OWN_LOGGERS:
        logging.getLogger(name).setLevel(logging.INFO)


def log_format() -> LogFormat:
    """How this process logs. "json": stderr is for a program, and what is meant for a person becomes a log line too."""
    return "text" if _handler is None else _handler.format_name


def log_run(run_id: str) -> None:
    """Lines of this process, of all its threads, carry the run's id from now on."""
    global _run_id
    _run_id = run_id


def log_split(split_id: str = "-") -> None:
    """Lines of this thread carry the split's id from now on."""
    _split_id.set(split_id)


@dataclass(frozen=True)
class LogSettings:
    """How the driver logs, for its workers."""

    run_id: str
    format: LogFormat

    @classmethod
    def current(cls, run_id: str) -> LogSettings:
        """As this process logs."""
        return cls(run_id, log_format())

    def apply(self) -> None:
        """Log so in this process, a worker's, from now on."""
        if _run_id != self.run_id:
            log_run(self.run_id)
            set_up_logging(self.format)
