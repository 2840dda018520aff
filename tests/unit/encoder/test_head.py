"""What follows the transformer: the model's other modules, held against the library that saved them."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.sentence_transformer.modules import Dropout, LayerNorm, Pooling

from pipeline.config import EncoderSettings
from pipeline.encoder import Encoder
from pipeline.errors import ModelError
from pipeline.model import describe_model
from tests.against_library import encode, encode_with_library
from tests.families import make_texts
from tests.models import write_json

TOLERANCE = 1e-5
NN = torch.nn


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def norm(dim: int) -> LayerNorm:
    """With weights that are not those it begins with."""
    layer = LayerNorm(dim)
    torch.nn.init.normal_(layer.norm.weight)
    torch.nn.init.normal_(layer.norm.bias)
    return layer


MODULES: dict[str, Callable[[], list[Any]]] = {
    "a Dense": lambda: [Pooling(32), Dense(32, 20), Normalize()],
    "no bias, another activation": lambda: [Pooling(32), Dense(32, 20, bias=False, activation_function=NN.GELU())],
    "two Dense, as EmbeddingGemma": lambda: [
        *(Pooling(32), Dense(32, 96, bias=False, activation_function=NN.Identity())),
        *(Dense(96, 32, bias=False, activation_function=NN.Identity()), Normalize()),
    ],
    "several poolings into a Dense": lambda: [Pooling(32, ("cls", "max", "mean")), Dense(96, 24)],
    "a LayerNorm": lambda: [Pooling(32), norm(32), Normalize()],
    "a Dense behind a norm": lambda: [Pooling(32), Normalize(), Dense(32, 16), norm(16)],
    "a residual": lambda: [Pooling(32), Dense(32, 32, use_residual=True)],
    "a residual of another width": lambda: [Pooling(32), Dense(32, 10, use_residual=True)],
    "before pooling": lambda: [
        *(Dense(32, 16, module_input_name="token_embeddings"), Normalize("token_embeddings")),
        *(Pooling(16, "mean"), Dense(16, 8)),
    ],
    "a Dropout": lambda: [Pooling(32), Dropout(0.5), Normalize()],
}


def saved(tiny: Path, path: Path, modules: list[Any]) -> Path:
    """The tiny model with other modules, as the library saves it."""
    model = SentenceTransformer(str(tiny), device="cpu")
    SentenceTransformer(modules=[model[0], *modules], device="cpu").save(str(path), create_model_card=False)
    return path


def respelled(path: Path) -> Path:
    """The same model as versions up to 5 wrote it."""
    modules = json.loads((path / "modules.json").read_text())
    for module in modules:
        module["type"] = f"sentence_transformers.models.{module['type'].rpartition('.')[2]}"
        config = path / module["path"] / "config.json"
        if module["type"].endswith("Pooling"):
            new = json.loads(config.read_text())
            modes = [new["pooling_mode"]] if isinstance(new["pooling_mode"], str) else new["pooling_mode"]
            names = {"cls": "cls_token", "max": "max_tokens", "mean": "mean_tokens"}
            flags = {f"pooling_mode_{name}": mode in modes for mode, name in names.items()}
            write_json(config, {"word_embedding_dimension": new["embedding_dimension"], **flags})
    write_json(path / "modules.json", modules)
    return path


@pytest.mark.parametrize("name", MODULES)
def test_vectors_are_the_librarys_with_any_modules_in_either_spelling(tiny: Path, tmp_path: Path, name: str) -> None:
    torch.manual_seed(1)
    path = saved(tiny, tmp_path / "saved", MODULES[name]())
    expected = encode_with_library(path, make_texts())
    assert np.abs(encode(path, make_texts(), token_budget=700) - expected).max() <= TOLERANCE
    assert np.abs(encode(respelled(path), make_texts()) - expected).max() <= TOLERANCE


@pytest.mark.parametrize("name", ["a Dense", "a LayerNorm"])
def test_reduced_precision_ends_where_the_transformer_does(tiny: Path, tmp_path: Path, name: str) -> None:
    path = saved(tiny, tmp_path / "saved", MODULES[name]())
    exact, reduced = encode(path, make_texts()), encode(path, make_texts(), compute="bfloat16")
    assert reduced.dtype == np.float32
    assert np.abs(np.linalg.norm(reduced, axis=1) - 1).max() <= 1e-5
    assert (exact * reduced).sum(axis=1).mean() >= 0.999


@pytest.mark.parametrize("name", ["a Dense", "a LayerNorm", "several poolings into a Dense"])
@pytest.mark.parametrize("where", ["model", "config"])
def test_truncated_vectors_are_the_librarys_and_of_unit_norm(tiny: Path, tmp_path: Path, name: str, where: str) -> None:
    path = saved(tiny, tmp_path / "saved", MODULES[name]())
    settings = {"truncate_dim": 12} if where == "config" else {}
    if where == "model":
        top = json.loads((path / "config_sentence_transformers.json").read_text())
        write_json(path / "config_sentence_transformers.json", {**top, "truncate_dim": 12})
    expected = encode_with_library(path, make_texts(), **settings)
    found = encode(path, make_texts(), settings=settings)
    assert found.shape == expected.shape == (len(make_texts()), 12)
    assert np.abs(found - expected).max() <= TOLERANCE
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() <= 1e-5


def test_weights_split_over_several_files_make_the_same_vectors(tiny: Path, tmp_path: Path) -> None:
    from transformers import BertModel

    path = Path(shutil.copytree(tiny, tmp_path / "sharded"))
    (path / "model.safetensors").unlink()
    BertModel.from_pretrained(tiny).save_pretrained(path, max_shard_size="20KB")
    description = describe_model(path, EncoderSettings(model=str(path)))
    assert len(description.weights) > 2
    assert np.array_equal(encode(path, make_texts()), encode(tiny, make_texts()))


def test_a_plain_folder_is_pooled_by_mean_as_in_the_library(tiny: Path, tmp_path: Path) -> None:
    path = Path(
        shutil.copytree(tiny, tmp_path / "plain", ignore=lambda *_: ["modules.json", "sentence_bert_config.json"])
    )
    expected = encode_with_library(path, make_texts())
    assert np.abs(encode(path, make_texts()) - expected).max() <= TOLERANCE


def test_weights_of_a_module_that_changed_since_it_was_described_are_refused(tiny: Path, tmp_path: Path) -> None:
    path = saved(tiny, tmp_path / "saved", MODULES["a Dense"]())
    description = describe_model(path, EncoderSettings(model=str(path)))
    other = saved(tiny, tmp_path / "other", MODULES["a Dense"]())
    shutil.copy(other / "2_Dense/model.safetensors", path / "2_Dense/model.safetensors")
    with pytest.raises(ModelError, match="not the one that the run began with"):
        Encoder(path, description, device="cpu")
