"""mteb's own code takes the encoder, and scores it as `vecmill evaluate` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.evaluate.vectors import encode_texts
from jobs.mteb_encoder import VecmillEncoder
from pipeline.config import EncoderSettings
from tests.models import make_model, write_json

TEXTS = ["of the time", "they said no more", "in time", "by them all"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_model(tmp_path_factory.mktemp("model"))
    write_json(path / "config_sentence_transformers.json", {"prompts": {"query": "who said: "}})
    return path


def _batches(texts: list[str]) -> list[dict[str, Any]]:
    return [{"text": texts[:3]}, {"text": texts[3:]}]


def test_batches_are_encoded_in_their_order(model: Path) -> None:
    encoder = VecmillEncoder(str(model), compute="float32")
    expected, _ = encode_texts(EncoderSettings(model=str(model), compute="float32"), TEXTS)
    found = encoder.encode(_batches(TEXTS))
    assert np.allclose(found, expected, atol=1e-6)
    assert np.allclose(encoder.similarity(found, found), expected @ expected.T, atol=1e-5)
    assert np.allclose(encoder.similarity_pairwise(found, found), 1, atol=1e-5)
    assert encoder.similarity(found[0], found).shape == (1, 4)


def test_queries_get_the_query_prompt(model: Path) -> None:
    encoder = VecmillEncoder(str(model), compute="float32", query_prompt="query")
    prompted = encoder.encode([{"text": TEXTS}], prompt_type="query")
    assert not np.allclose(prompted, encoder.encode([{"text": TEXTS}]), atol=1e-3)
    by_hand = encoder.encode([{"text": [f"who said: {text}" for text in TEXTS]}])
    assert np.allclose(prompted, by_hand, atol=1e-6)


def test_it_is_an_encoder_to_mteb_and_a_task_scores_it(model: Path) -> None:
    mteb = pytest.importorskip("mteb", reason="mteb is not installed; it is no dependency of Vecmill")
    datasets = pytest.importorskip("datasets")
    from mteb.abstasks.sts import AbsTaskSTS
    from mteb.models import EncoderProtocol

    from jobs.evaluate.scores import spearman

    encoder = VecmillEncoder(str(model), compute="float32")
    assert isinstance(encoder, EncoderProtocol)
    assert (encoder.mteb_model_meta.embed_dim, encoder.mteb_model_meta.max_tokens) == (32, 48)
    firsts, seconds, scores = TEXTS, TEXTS[::-1], [1.0, 4.0, 3.5, 0.0]

    class Pairs(AbsTaskSTS):  # type: ignore[misc]
        metadata = mteb.get_task("STSBenchmark.v2").metadata.model_copy(
            update={"name": "Pairs", "eval_splits": ["test"]}
        )

        def load_data(self, **kwargs: Any) -> None:
            columns = {"sentence1": firsts, "sentence2": seconds, "score": scores}
            self.dataset = datasets.DatasetDict({"test": datasets.Dataset.from_dict(columns)})
            self.data_loaded = True

    result = mteb.evaluate(encoder, Pairs(), cache=None, co2_tracker=False, show_progress_bar=False)
    [found] = result.task_results[0].scores["test"]
    one, other = (encoder.encode([{"text": texts}]) for texts in (firsts, seconds))
    expected = spearman(encoder.similarity_pairwise(one, other), scores)
    assert found["cosine_spearman"] == pytest.approx(expected)
