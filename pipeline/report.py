"""What a person looks at while a run goes on, and after it.

On a terminal one line that moves; elsewhere (a cluster job's log) the same line every ten seconds.
Both on stderr: stdout carries the answer.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, TextIO

from tqdm import tqdm

from pipeline.logs import log_format

log = logging.getLogger(__name__)

_LINE_EVERY_S = 10.0
_REDRAW_EVERY_S = 0.5


class _Shown(ABC):
    """Shows a line from a thread of its own: also while what is counted takes long.

    On a terminal it is one line that changes; elsewhere a log line every ten seconds.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        is_terminal = self._stream.isatty() and log_format() == "text"
        self._every_s = _REDRAW_EVERY_S if is_terminal else _LINE_EVERY_S
        self._started = time.monotonic()
        self._bar = tqdm(file=self._stream, disable=not is_terminal, bar_format="{desc}", leave=False)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._show, name="vecmill-progress", daemon=True)

    @abstractmethod
    def line(self) -> str:
        """The progress as one line for a person."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._bar.close()

    def _show(self) -> None:
        while not self._stop.wait(self._every_s):
            if self._bar.disable:
                log.info("%s", self.line())
            else:
                self._bar.set_description_str(self.line())

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._started


class Progress(_Shown):
    """Counts what comes out of the flows of an `embed`, and shows it."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.num_splits = 0
        self.num_bytes = 0
        self.num_encoders = 0
        self.num_done = 0
        self.num_bytes_done = 0
        self.num_documents = 0
        self.num_tokens = 0
        self.num_padded_tokens = 0
        self.encode_s = 0.0
        self.encoder_peak_bytes = 0
        super().__init__(stream)

    def expect(self, num_splits: int, num_bytes: int, num_encoders: int) -> None:
        """A flow begins.

        Args:
            num_splits: splits planned; grows when a range turns out to hold several.
            num_bytes: their size, estimated for compressed files; what the time left is told by.
            num_encoders: encoders in the pool, for the share of them that is busy.
        """
        self.num_splits = self.num_done + num_splits
        self.num_bytes = self.num_bytes_done + num_bytes
        self.num_encoders = num_encoders

    def add(
        self,
        *,
        num_bytes: int,
        documents: int = 0,
        tokens: int = 0,
        padded_tokens: int = 0,
        encode_s: float = 0,
        encoder_peak_bytes: int = 0,
    ) -> None:
        """One split is done."""
        self.num_done += 1
        self.num_splits = max(self.num_splits, self.num_done)
        self.num_bytes_done += num_bytes
        self.num_documents += documents
        self.num_tokens += tokens
        self.num_padded_tokens += padded_tokens
        self.encode_s += encode_s
        self.encoder_peak_bytes = max(self.encoder_peak_bytes, encoder_peak_bytes)

    def figures(self) -> dict[str, Any]:
        """The counts, and the rates made from them; what `run.json` carries as progress."""
        seconds = max(self.seconds, 1e-9)
        return {
            "splits": self.num_splits,
            "splits_done": self.num_done,
            "documents": self.num_documents,
            "tokens": self.num_tokens,
            "documents_per_s": round(self.num_documents / seconds, 1),
            "tokens_per_s": round(self.num_tokens / seconds),
            "busy_ratio": round(min(1.0, self.encode_s / (seconds * max(1, self.num_encoders))), 3),
            "padding_ratio": round(self.num_padded_tokens / self.num_tokens, 4) if self.num_tokens else 1.0,
            "encoder_peak_bytes": self.encoder_peak_bytes,
        }

    def line(self) -> str:
        """The progress as one line for a person."""
        figures = self.figures()
        left = "?"
        if self.num_bytes_done:
            bytes_left = max(0, self.num_bytes - self.num_bytes_done)
            left = tqdm.format_interval(self.seconds / self.num_bytes_done * bytes_left)
        return (
            f"splits {self.num_done}/{self.num_splits} · {figures['documents_per_s']:,.0f} documents/s · "
            f"{figures['tokens_per_s']:,} tokens/s · "
            f"encoders busy {figures['busy_ratio'] * self.num_encoders:.1f} of {self.num_encoders} · "
            f"padding {figures['padding_ratio']:.3f} · {tqdm.format_interval(self.seconds)} gone, {left} left"
        )


class StageProgress(_Shown):
    """Counts the tasks of the stages of an `index`, one stage after the other, and shows them."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stage = ""
        self._num_tasks = self._num_done = 0
        self._stage_started = time.monotonic()
        super().__init__(stream)

    def expect(self, stage: str, num_tasks: int) -> None:
        """A stage begins."""
        self._stage, self._num_tasks, self._num_done = stage, num_tasks, 0
        self._stage_started = time.monotonic()

    def add(self) -> None:
        """One task of it is done."""
        self._num_done += 1

    def figures(self) -> dict[str, Any]:
        """What `run.json` carries as progress."""
        return {"stage": self._stage, "tasks": self._num_tasks, "tasks_done": self._num_done}

    def line(self) -> str:
        """The progress as one line for a person."""
        gone = tqdm.format_interval(self.seconds)
        if not self._stage:
            return f"{gone} gone"
        if self._num_done == self._num_tasks:
            return f"{self._stage} done · {gone} gone"
        left = "?"
        if self._num_done:
            per_task = (time.monotonic() - self._stage_started) / self._num_done
            left = tqdm.format_interval(per_task * (self._num_tasks - self._num_done))
        return f"{self._stage} {self._num_done}/{self._num_tasks} · {gone} gone, {left} left of this stage"


def summary(outcome: Mapping[str, Any]) -> str:
    """The end of a run, for a person; `outcome` is the JSON line of `embed`."""
    if not outcome["published"]:
        head = f"nothing to do: snapshot {outcome['snapshot_id']} is current"
    else:
        head = f"published snapshot {outcome['snapshot_id']} to {outcome['store_uri']}"
    counts = (
        f"{outcome['documents_in']:,} documents in = {outcome['embedded']:,} embedded + {outcome['reused']:,} reused + "
        f"{outcome['quarantined']:,} quarantined"
    )
    more = [f"{outcome[key]:,} {key}" for key in ("deleted", "truncated") if outcome.get(key)]
    rates = ""
    if outcome.get("tokens_per_s"):
        rates = (
            f"\n  {outcome['documents_per_s']:,.0f} documents/s, {outcome['tokens_per_s']:,} tokens/s, "
            f"padding {outcome['padding_ratio']:.3f}, an encoder's memory at most "
            f"{outcome['encoder_peak_bytes'] / 2**20:,.0f} MiB"
        )
    return f"{head}\n  {'; '.join([counts, *more])}{rates}\n  {outcome['seconds']:.1f} s"


def index_summary(outcome: Mapping[str, Any]) -> str:
    """The end of a run, for a person; `outcome` is the JSON line of `index`."""
    if not outcome["published"]:
        head = f"nothing to do: snapshot {outcome['snapshot_id']} has this index"
    else:
        head = f"published the index as snapshot {outcome['snapshot_id']} to {outcome['store_uri']}"
    low, high = outcome["recall_interval"]
    return (
        f"{head}\n  {outcome['num_rows']:,} rows as {outcome['codec']} in {outcome['nlist']:,} lists, "
        f"{outcome['num_bytes']:,} bytes\n  recall@10 {outcome['recall_at_10']:.4f} ({low:.4f} to {high:.4f}) of "
        f"{outcome['queries']}, at nprobe {outcome['nprobe']} and rerank {outcome['rerank']}, which read "
        f"{outcome['read_ratio']:.1%} of the codes\n  {outcome['seconds']:.1f} s"
    )
