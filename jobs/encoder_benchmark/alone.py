"""The encoder alone, kept beside something else that is measured: in a process of its own, asked when its turn is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from jobs.encoder_benchmark.contest import new_host
from jobs.encoder_benchmark.ours import ours
from jobs.encoder_benchmark.task import Contestant, make_task
from pipeline.config import EncoderSettings

_alone: list[Contestant] = []


@contextmanager
def encoder_alone(corpus: Path, num_documents: int, settings: EncoderSettings) -> Iterator[Callable[[], float]]:
    """A call that encodes the documents' token ids once more, and tells the seconds; it is loaded before.

    Equal texts count once, here and in `embed` too as far as they are in one split.
    """
    with new_host() as host:
        host.submit(_start, corpus, num_documents, settings).result()
        yield lambda: host.submit(_run).result()


def _start(corpus: Path, num_documents: int, settings: EncoderSettings) -> None:
    _alone.append(next(iter(ours(make_task(corpus, num_documents, settings)))))


def _run() -> float:
    return _alone[0].run().seconds
