"""On a CPU each thread takes a batch of its own: the same vectors, and still nothing costs another document."""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.config import EncoderSettings
from pipeline.encoder import Encoder, encode
from pipeline.encoder.cpu import is_stateless
from pipeline.model import describe_model
from pipeline.tokens import load_tokenizer
from tests.families import make_texts

TEXTS = make_texts()


@pytest.fixture
def encoder(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Encoder]:
    """Of two threads, wherever it runs."""
    before = torch.get_num_threads()
    monkeypatch.setattr(encode, "num_cores", lambda: 2)
    yield made(tiny, 2)
    torch.set_num_threads(before)


def made(path: Path, num_threads: int) -> Encoder:
    description = describe_model(path, EncoderSettings(model=str(path)))
    return Encoder(path, description, compute="float32", token_budget=200, device="cpu", num_threads=num_threads)


def ids_of(path: Path) -> list[Any]:
    return load_tokenizer(path, describe_model(path, EncoderSettings(model=str(path)))).query_ids(TEXTS)


class Watched:
    """The model's forward, which knows how many are in it."""

    def __init__(self, model: Any) -> None:
        self._model, self._lock = model, threading.Lock()
        self.inside, self.most, self.begun = 0, 0, 0
        self.meeting: threading.Barrier | None = None
        self.no_memory_beside_another = False

    def __call__(self, *, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        with self._lock:
            self.inside += 1
            self.begun += 1
            self.most = max(self.most, self.inside)
            first, is_beside = self.begun <= 2, self.inside > 1
        try:
            if self.meeting is not None and first:
                self.meeting.wait(timeout=60)
            if self.no_memory_beside_another and (is_beside or self.inside > 1):
                raise torch.OutOfMemoryError("out of memory")
            hidden = self._model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        finally:
            with self._lock:
                self.inside -= 1
        return SimpleNamespace(last_hidden_state=hidden)


def watch(encoder: Encoder) -> Watched:
    watched = Watched(encoder._model)
    encoder._model = watched
    return watched


def test_two_passes_run_at_once_and_the_vectors_are_those_of_one(encoder: Encoder, tiny: Path) -> None:
    ids = ids_of(tiny)
    expected = made(tiny, 1).encode(ids)
    watched = watch(encoder)
    watched.meeting = threading.Barrier(2)  # each waits for the other within the model
    found = encoder.encode(ids)
    assert watched.most == 2
    assert (found.invalid, found.failed) == ([], {})
    assert found.num_padded_tokens == expected.num_padded_tokens
    assert np.abs(found.vectors - expected.vectors).max() <= 1e-6


def test_each_thread_has_a_part_of_a_few_sequences(encoder: Encoder, tiny: Path) -> None:
    """One batch would leave all but one of them idle."""
    told = list[Sequence[int]]()
    encoder.token_budget = 100_000
    encoder.encode(ids_of(tiny), before=told.append)
    assert len(told) >= 2


def test_in_turn_each_batch_is_done_before_the_next_is_told(encoder: Encoder, tiny: Path) -> None:
    """What ends the process is then the batch that was told last: what the attempt ledger stands on."""
    watched, told = watch(encoder), list[int]()

    def before(batch: Sequence[int]) -> None:
        assert watched.inside == 0
        assert watched.begun == len(told), "told after it was tried, or beside another"
        told.append(len(batch))

    encoder.encode(ids_of(tiny), before=before, in_turn=True)
    assert len(told) > 2
    assert watched.most == 1


def test_what_does_not_fit_beside_others_is_tried_with_none_beside_it(encoder: Encoder, tiny: Path) -> None:
    ids = ids_of(tiny)
    expected = made(tiny, 1).encode(ids).vectors
    watched = watch(encoder)
    watched.meeting = threading.Barrier(2)
    watched.no_memory_beside_another = True
    encoder.token_budget = 1  # a sequence each: none can be halved
    found = encoder.encode(ids)
    assert watched.most == 2
    assert (found.invalid, found.failed) == ([], {}), "no document is to blame"
    assert np.abs(found.vectors - expected).max() <= 1e-6


@pytest.mark.parametrize(
    ("rope_type", "expected"),
    [("default", True), ("dynamic", False), ({"full_attention": "longrope", "sliding_attention": "default"}, False)],
)
def test_a_model_that_changes_with_the_lengths_it_sees_has_one_pass_at_a_time(rope_type: Any, expected: bool) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Identity())
    model[1].rope_type = rope_type
    assert is_stateless(model) == expected


def test_equal_sequences_are_computed_once(encoder: Encoder, tiny: Path) -> None:
    ids = [*ids_of(tiny), *ids_of(tiny)[:5], *ids_of(tiny)[:5]]
    told, one_by_one = list[int](), list[int]()
    once = encoder.encode(ids, before=told.extend)
    each = encoder.encode(ids, before=one_by_one.extend, in_turn=True)
    assert len(told) == len({tuple(sequence.tolist()) for sequence in ids}) <= len(ids) - 10
    assert sorted(one_by_one) == list(range(len(ids))), "on trial each is for itself"
    assert np.abs(once.vectors - each.vectors).max() <= 1e-6
    num_tokens = sum(map(len, ids))
    assert num_tokens <= once.num_padded_tokens <= 1.5 * num_tokens, "a padding ratio is of all sequences"


def test_each_of_equal_sequences_that_fail_is_told(
    encoder: Encoder, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = ids_of(tiny)[:3]
    forward = encoder._forward

    def fails(batch: Any, mask: Any) -> torch.Tensor:
        if any(row[real].tolist() == list(ids[1]) for row, real in zip(batch, mask, strict=True)):
            raise ValueError("this one")
        return forward(batch, mask)

    monkeypatch.setattr(encoder, "_forward", fails)
    found = encoder.encode([ids[0], ids[1], ids[2], ids[1]])
    assert sorted(found.failed) == [1, 3]
    assert found.invalid == []
    assert np.linalg.norm(found.vectors, axis=1).round(3).tolist() == [1, 0, 1, 0]
