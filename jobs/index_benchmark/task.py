"""What all contestants are given, and what one of them is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from pipeline.config import Config
from pipeline.index.codecs import Floats
from pipeline.index.shards import Rows
from pipeline.snapshots.reader import Snapshot, open_snapshot


@dataclass(frozen=True)
class Task:
    """The vectors to index, and how.

    Attributes:
        config: of ours; its store is the scratch store with the vectors.
        nlist: lists, the same for all that have them.
        num_sample: rows that ours is trained on.
        num_threads: of each peer; ours uses as many cores.
    """

    config: Config
    nlist: int
    num_sample: int
    num_threads: int

    def snapshot(self) -> Snapshot:
        """The vectors."""
        return open_snapshot(self.config.store.uri)


@dataclass(frozen=True)
class Built:
    """What a build came to."""

    seconds: float
    stages: Mapping[str, float] = field(default_factory=dict)
    """Seconds of each; those before the build itself have names in brackets."""
    files: Mapping[str, int] = field(default_factory=dict)
    """Bytes of what is searched, by kind."""
    settings: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)


class Setting(NamedTuple):
    """How to search: more of `effort` (lists to probe, or ef) finds more, and so does comparing more by vector."""

    effort: int
    rerank: int = 0


class Searcher(Protocol):
    """An index that is open."""

    @property
    def efforts(self) -> Sequence[int]:
        """Ascending."""

    @property
    def reranks(self) -> Sequence[int]:
        """0: none."""

    @property
    def names(self) -> tuple[str, str]:
        """What its users call the two."""

    def search(self, queries: Floats, k: int, setting: Setting) -> Rows:
        """Row addresses (Q, k), nearest first; -1 where there are no more."""


class Contestant(Protocol):
    """One that builds an index, in a process of its own."""

    @property
    def name(self) -> str:
        """As the table has it."""

    def ready(self, task: Task, folder: Path) -> AbstractContextManager[Callable[[], Built]]:
        """All that a build needs, started and imported; what it builds goes to `folder`.

        Raises:
            ModuleNotFoundError: its package is not installed.
            Unavailable: it cannot take part.
        """

    def open(self, task: Task, folder: Path) -> Searcher:
        """What was built there, for search."""


def padded(rows: Sequence[Rows], k: int) -> Rows:
    """(Q, k), filled up with -1."""
    found = np.full((len(rows), k), -1, np.int64)
    for place, some in enumerate(rows):
        found[place, : min(k, len(some))] = some[:k]
    return found
