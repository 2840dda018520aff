"""Tokens are those that the tokenizer of the run makes; what is thrown away is told."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipeline.config import EncoderSettings
from pipeline.estimate import texts as measuring
from pipeline.estimate.ratios import Estimate
from pipeline.estimate.sample import Sample
from pipeline.estimate.texts import measure_texts
from pipeline.model import describe_model
from pipeline.schema import DOCUMENT_FIELDS
from pipeline.tokens import SequenceTokenizer, load_tokenizer, tokenize
from tests.models import make_model


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> SequenceTokenizer:
    path = make_model(tmp_path_factory.mktemp("model"))
    return load_tokenizer(path, describe_model(path, EncoderSettings(model=str(path))))


def _sample(texts: list[str]) -> Sample:
    num = len(texts)
    columns = [[str(i) for i in range(num)], list(range(num)), [bytes(16)] * num, texts]
    documents = pa.table(columns, schema=pa.schema(DOCUMENT_FIELDS))
    return Sample(documents, np.ones(num), np.zeros(num, np.int64), 1.0, Estimate(num), is_whole=True, num_read=num)


def _texts(num: int) -> list[str]:
    return ["of the time " * (1 + number * 7 % 60) for number in range(num)]


def test_where_all_are_tokenized_it_is_the_tokenizers_word(tokenizer: SequenceTokenizer) -> None:
    """48 tokens at most, two of them special: a text of 60 words loses 14 of them."""
    found = measure_texts(_sample(["of it", "of " * 60]), tokenizer, 48)
    assert found.num_tokens == Estimate((4 + 48) / 2)
    assert found.num_sequences == Estimate(1.0)
    assert found.lengths.tolist() == [4, 48]
    assert found.truncated_ratio == 0.5
    assert found.document_tokens[1] == pytest.approx(62, rel=0.05)
    assert found.thrown_ratio == pytest.approx(14 / 66, rel=0.1)


def test_a_part_tells_of_all(tokenizer: SequenceTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = _sample(_texts(2000))
    truth = float(np.mean(tokenize(sample.documents, tokenizer, input_file="").sequences["num_tokens"].to_numpy()))
    monkeypatch.setattr(measuring, "_FEWEST", 100)
    found = measure_texts(sample, tokenizer, 48)
    assert found.num_documents == 100
    assert found.num_tokens.value == pytest.approx(truth, rel=0.01)
    assert abs(found.num_tokens.value - truth) <= found.num_tokens.plus_minus + 0.5


def test_long_texts_are_fewer(tokenizer: SequenceTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample of books must not take minutes."""
    monkeypatch.setattr(measuring, "_MOST_BYTES", 2**15)
    found = measure_texts(_sample(["of the time " * 300] * 1500), tokenizer, 48)
    assert found.num_documents == 200


def test_without_documents_there_are_no_tokens(tokenizer: SequenceTokenizer) -> None:
    found = measure_texts(_sample([]), tokenizer, 48)
    assert (found.num_documents, found.num_tokens.value, len(found.lengths)) == (0, 0, 0)
