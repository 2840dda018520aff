"""The encoder: equal to the library, whatever the batch; nothing costs another document."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch

from pipeline.config import EncoderSettings
from pipeline.encoder import Encoder, is_out_of_memory
from pipeline.errors import AcceleratorFault, EnvironmentFault, ModelError, VecmillError
from pipeline.model import describe_model
from pipeline.tokens import load_tokenizer
from tests.models import WORDS, make_model, minilm_path

Floats = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """80 texts of 1 to 90 words, so that some are truncated."""
    random = np.random.default_rng(3)
    return [" ".join(random.choice(WORDS, size)) for size in random.integers(1, 90, 80)]


def made(path: Path, **options: Any) -> Encoder:
    settings = EncoderSettings(model=str(path))
    # One thread: two that wait for each other on a busy machine take many times as long over a model this small.
    fixed = {"compute": "float32", "device": "cpu", "num_threads": 1}
    return Encoder(path, describe_model(path, settings), **{**fixed, **options})


def ids_of(path: Path, texts: list[str]) -> list[npt.NDArray[np.int32]]:
    return load_tokenizer(path, describe_model(path, EncoderSettings(model=str(path)))).query_ids(texts)


def of_library(path: Path, texts: list[str]) -> Floats:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(path), device="cpu")
    vectors: Floats = model.encode(texts, normalize_embeddings=True)
    return vectors


def cosines(left: Floats, right: Floats) -> Floats:
    values: Floats = (left * right).sum(axis=1)
    return values


class Stub:
    """The model's forward, with a rule that may raise or change what comes out."""

    def __init__(self, model: Any, rule: Callable[[torch.Tensor], float | None]) -> None:
        self.model, self.rule, self.sizes = model, rule, list[int]()

    def __call__(self, *, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        factor = self.rule(input_ids)
        self.sizes.append(input_ids.numel())
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return SimpleNamespace(last_hidden_state=hidden * (1.0 if factor is None else factor))


def stub(encoder: Encoder, rule: Callable[[torch.Tensor], float | None]) -> Stub:
    stubbed = Stub(encoder._model, rule)
    encoder._model = stubbed
    return stubbed


@pytest.mark.parametrize("mode", ["cls", "mean", "max"])
@pytest.mark.parametrize("normalize", [True, False])
def test_vectors_are_the_librarys_for_each_pooling(
    tmp_path: Path, texts: list[str], mode: str, *, normalize: bool
) -> None:
    """Promise 5: max abs difference 1e-5 in float32."""
    path = make_model(tmp_path / "m", pooling={"embedding_dimension": 32, "pooling_mode": mode}, normalize=normalize)
    found = made(path, token_budget=500).encode(ids_of(path, texts))
    assert np.abs(found.vectors - of_library(path, texts)).max() <= 1e-5
    assert (found.invalid, found.failed) == ([], {})


def test_minilm_equals_the_library_in_float32_and_holds_in_bfloat16() -> None:
    """Promise 5, with the real model: 1e-5; and cosine to float32, mean >= 0.9999 and min >= 0.999."""
    real = [(getattr(np, name).__doc__ or "")[: 20 * index] for index, name in enumerate(dir(np)[100:150])]
    real = [text for text in real if text.strip()]
    ids = ids_of(minilm_path(), real)
    expected = of_library(minilm_path(), real)
    assert np.abs(made(minilm_path()).encode(ids).vectors - expected).max() <= 1e-5
    reduced = made(minilm_path(), compute="bfloat16")
    vectors = reduced.encode(ids).vectors
    assert cosines(vectors, expected).mean() >= 0.9999
    assert cosines(vectors, expected).min() >= 0.999
    # Promise 6: alone or in the fullest batch, within one compute type.
    alone = np.concatenate([reduced.encode([one]).vectors for one in ids[::8]])
    assert cosines(alone, vectors[::8]).min() >= 0.9999


@pytest.mark.parametrize("compute", ["float32", "bfloat16", "float16"])
def test_the_norm_is_one_and_float32_whatever_the_compute_type(tiny: Path, texts: list[str], compute: str) -> None:
    found = made(tiny, compute=compute).encode(ids_of(tiny, texts)).vectors
    assert found.dtype == np.float32
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() <= 1e-3


def test_neither_batch_nor_order_nor_container_changes_a_vector(tiny: Path, texts: list[str]) -> None:
    """Promise 6."""
    ids = ids_of(tiny, texts)
    fullest = made(tiny, token_budget=100_000).encode(ids).vectors
    alone = made(tiny, token_budget=1).encode(ids).vectors
    assert cosines(fullest, alone).min() >= 0.9999
    order = np.random.default_rng(0).permutation(len(ids))
    shuffled = made(tiny).encode([ids[index] for index in order]).vectors
    assert cosines(shuffled, fullest[order]).min() >= 0.9999
    arrow = pa.array([one.tolist() for one in ids], pa.list_(pa.int32()))
    chunked = pa.chunked_array([arrow.slice(0, 30), arrow.slice(30)])
    assert np.array_equal(made(tiny).encode(chunked).vectors, made(tiny).encode(ids).vectors)
    assert np.array_equal(made(tiny).encode(arrow.slice(20, 9)).vectors, made(tiny).encode(ids[20:29]).vectors)


def test_no_sequences_are_no_vectors(tiny: Path) -> None:
    found = made(tiny).encode(pa.array([], pa.list_(pa.int32())))
    assert found.vectors.shape == (0, 32)
    assert found.num_padded_tokens == 0


def out_of_memory_above(limit: int, error: type[Exception]) -> Callable[[torch.Tensor], float | None]:
    def rule(input_ids: torch.Tensor) -> float | None:
        if input_ids.numel() > limit:
            message = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."
            raise error("CUDA out of memory." if error is torch.OutOfMemoryError else message)
        return None

    return rule


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_a_batch_out_of_memory_is_halved_and_the_budget_learns(
    tiny: Path, texts: list[str], error: type[Exception]
) -> None:
    ids = ids_of(tiny, texts)
    encoder = made(tiny, token_budget=4096)
    expected = encoder.encode(ids)
    stubbed = stub(encoder, out_of_memory_above(300, error))
    found = encoder.encode(ids)
    assert np.abs(found.vectors - expected.vectors).max() <= 1e-6
    assert (found.invalid, found.failed) == ([], {})
    assert encoder.token_budget <= 300
    learnt, calls = encoder.token_budget, len(stubbed.sizes)
    again = encoder.encode(ids)
    assert encoder.token_budget == learnt
    assert again.num_padded_tokens == sum(stubbed.sizes[calls:]), "what was learnt is not tried again"


def test_a_sequence_that_alone_does_not_fit_fails_alone(tiny: Path, texts: list[str]) -> None:
    ids = ids_of(tiny, texts)
    encoder = made(tiny)
    expected = encoder.encode(ids).vectors
    stub(encoder, out_of_memory_above(40, torch.OutOfMemoryError))
    found = encoder.encode(ids)
    long = [index for index, one in enumerate(ids) if len(one) > 40]
    assert sorted(found.failed) == long
    assert "does not fit into memory, 48 tokens alone" in found.failed[long[0]] or long
    others = np.setdiff1d(np.arange(len(ids)), long)
    assert np.abs(found.vectors[others] - expected[others]).max() <= 1e-6
    assert not found.vectors[long].any()


def test_memory_that_is_gone_altogether_blames_no_document(tiny: Path, texts: list[str]) -> None:
    encoder = made(tiny)
    stub(encoder, out_of_memory_above(0, torch.OutOfMemoryError))
    with pytest.raises(EnvironmentFault, match="no memory left"):
        encoder.encode(ids_of(tiny, texts))


def test_a_document_that_raises_costs_no_other(tiny: Path, texts: list[str]) -> None:
    """Promise 4. The id is beyond the vocabulary: a real IndexError of the embedding."""
    ids = ids_of(tiny, texts)
    encoder = made(tiny)
    expected = encoder.encode(ids).vectors
    found = encoder.encode([*ids[:20], np.array([2, 99_999, 3]), *ids[20:]])
    assert list(found.failed) == [20]
    assert found.failed[20].startswith("IndexError")
    assert np.abs(np.delete(found.vectors, 20, axis=0) - expected).max() <= 1e-6


def test_a_document_that_raises_is_found_by_bisecting(tiny: Path, texts: list[str]) -> None:
    """64 in one batch, one of them bad: about two passes for each halving, not one for each document."""
    ids = ids_of(tiny, texts)[:64]
    ids[40] = np.array([2, 99_999, 3])
    encoder = made(tiny, token_budget=100_000)
    encoder.min_tokens = None  # however they pad
    tried = list[list[int]]()
    found = encoder.encode(ids, before=lambda batch: tried.append(list(batch)))
    assert list(found.failed) == [40]
    assert len(tried) == 1 + 2 * 6
    assert {len(batch) for batch in tried} == {64, 32, 16, 8, 4, 2, 1}


def test_sequences_in_doubt_go_alone_and_after_all_others(tiny: Path, texts: list[str]) -> None:
    """`before` names each batch before it is tried: what the attempt ledger stands on."""
    ids = ids_of(tiny, texts)
    encoder = made(tiny, token_budget=200)
    expected = encoder.encode(ids).vectors
    tried = list[list[int]]()
    stubbed = stub(encoder, lambda input_ids: None)

    def before(batch: Sequence[int]) -> None:
        assert len(tried) == len(stubbed.sizes), "named after it was tried"
        tried.append(list(batch))

    found = encoder.encode(ids, alone=[70, 3, 12], before=before)
    assert tried[-3:] == [[70], [3], [12]]
    assert sorted(index for batch in tried for index in batch) == list(range(len(ids)))
    assert cosines(found.vectors, expected).min() >= 0.9999


def test_an_encoder_that_fails_on_everything_blames_no_document(tiny: Path, texts: list[str]) -> None:
    encoder = made(tiny)

    def broken(input_ids: torch.Tensor) -> float | None:
        raise ValueError("always")

    stub(encoder, broken)
    with pytest.raises(VecmillError, match="fails on two tokens: ValueError: always"):
        encoder.encode(ids_of(tiny, texts))


def test_an_accelerator_that_dies_blames_no_document(tiny: Path, texts: list[str]) -> None:
    encoder = made(tiny)

    def broken(input_ids: torch.Tensor) -> float | None:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    stub(encoder, broken)
    with pytest.raises(AcceleratorFault, match="accelerator cpu failed: CUDA error"):
        encoder.encode(ids_of(tiny, texts))


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 0.0])
def test_vectors_that_are_no_vectors_are_found(tiny: Path, texts: list[str], factor: float) -> None:
    """Promise 6: unit norm and finite, checked before they are written."""
    ids = ids_of(tiny, texts)
    encoder = made(tiny)
    expected = encoder.encode(ids).vectors
    stub(encoder, lambda input_ids: factor if len(input_ids) == 1 else None)
    encoder.token_budget = 90  # the longest, of 48 tokens, go alone
    found = encoder.encode(ids)
    sound = np.setdiff1d(np.arange(len(ids)), found.invalid)
    assert found.invalid
    assert not found.vectors[found.invalid].any()
    assert np.abs(found.vectors[sound] - expected[sound]).max() <= 1e-6
    assert found.failed == {}


def test_padded_tokens_are_counted(tiny: Path) -> None:
    found = made(tiny, token_budget=100).encode([np.full(10, 7), np.full(8, 7), np.full(4, 7)])
    assert found.num_padded_tokens == 30


def test_the_budget_is_kept(tiny: Path, texts: list[str]) -> None:
    encoder = made(tiny, token_budget=200)
    stubbed = stub(encoder, lambda input_ids: None)
    encoder.encode(ids_of(tiny, texts))
    assert max(stubbed.sizes) <= 200


def test_freed_memory_goes_back_after_so_many_passes_however_small_the_splits(
    tiny: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trims: list[int] = []
    passes: list[Sequence[int]] = []
    monkeypatch.setattr("pipeline.encoder.encode.trim_memory", lambda: trims.append(len(passes)))
    encoder = made(tiny, token_budget=8)
    ids = ids_of(tiny, texts)
    while len(passes) < 200:
        encoder.encode(ids[:9], before=passes.append)
    assert len(trims) == len(passes) // 64
    assert np.diff([0, *trims]).max() <= 64 + 2  # one thread: one runs, one waits


def test_other_weights_than_described_are_refused(tiny: Path, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other", top={"prompts": {}})
    description = describe_model(tiny, EncoderSettings(model=str(tiny)))
    with (other / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    with pytest.raises(ModelError, match="not the one that the run began with"):
        Encoder(other, description)


def test_weights_that_miss_a_layer_are_refused(tmp_path: Path) -> None:
    """transformers would fill the layer with random numbers."""
    from safetensors.numpy import load_file, save_file

    path = make_model(tmp_path / "m")
    weights = load_file(path / "model.safetensors")
    save_file({key: value for key, value in weights.items() if "layer.1" not in key}, path / "model.safetensors")
    with pytest.raises(ModelError, match="not whole: encoder"):
        made(path)


def test_is_out_of_memory_knows_the_three_kinds_and_no_other() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("x"))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
    assert not is_out_of_memory(RuntimeError("shapes differ"))


def test_it_runs_where_ray_and_faiss_are_not_installed(tiny: Path) -> None:
    code = (
        "import sys; sys.modules['ray'] = sys.modules['faiss'] = None\n"
        "from pipeline.config import EncoderSettings\n"
        "from pipeline.encoder import Encoder\n"
        "from pipeline.model import describe_model\n"
        "from pipeline.tokens import load_tokenizer\n"
        "path = sys.argv[1]; description = describe_model(path, EncoderSettings(model=path))\n"
        "ids = load_tokenizer(path, description).query_ids(['the man'])\n"
        "print(Encoder(path, description).encode(ids).vectors.shape)\n"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code, tiny], cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(1, 32)", done.stderr
    assert done.stderr == "", "what the libraries print is quiet"
