"""What a model folder is described as, and what is refused."""

import dataclasses
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config import EncoderSettings
from pipeline.errors import ModelError, NotSupportedError, UsageError
from pipeline.model import ModelDescription, check_files, describe_model, encoder_fingerprint
from tests.models import minilm_path, write_json


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny, tmp_path / "model"))


def describe(path: Path, **settings: Any) -> ModelDescription:
    return describe_model(path, EncoderSettings(model=str(path), **settings))


def change(path: Path, **values: Any) -> None:
    write_json(path, {**(json.loads(path.read_text()) if path.exists() else {}), **values})


def test_minilm_is_described_as_published() -> None:
    found = describe(minilm_path())
    assert (found.pooling, found.dim, found.max_tokens, found.prompt) == (("mean",), 384, 256, "")
    assert found.modules == ("Transformer", "Pooling", "Normalize")
    assert found.weights == {"model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"}


def test_the_fingerprint_of_minilm_is_what_it_was() -> None:
    """Stores that were made before more kinds of models were known go on; another prompt or pooling is another."""
    assert describe(minilm_path()).fingerprint("{text}") == "5b3566d8b054e236"
    assert describe(minilm_path(), prompt="passage").fingerprint("{text}") == "b86bf95e52b0f1ce"
    assert describe(minilm_path(), pooling="cls").fingerprint("{text}") == "200fcd276624d63e"


def test_the_description_travels(folder: Path) -> None:
    found = describe(folder)
    assert pickle.loads(pickle.dumps(found)) == found  # noqa: S301
    assert json.loads(json.dumps(found.spelled_out("{text}")))["template"] == "{text}"


def test_both_spellings_of_module_types_and_pooling_are_one_model(folder: Path) -> None:
    old = describe(folder).fingerprint("{text}")
    modules = json.loads((folder / "modules.json").read_text())
    new = ["base.modules.transformer.Transformer", "sentence_transformer.modules.pooling.Pooling"]
    new.append("base.modules.normalize.Normalize")
    for module, spelling in zip(modules, new, strict=True):
        module["type"] = f"sentence_transformers.{spelling}"
    write_json(folder / "modules.json", modules)
    write_json(folder / "1_Pooling/config.json", {"embedding_dimension": 32, "pooling_mode": "mean"})
    assert describe(folder).fingerprint("{text}") == old


def test_a_folder_saved_by_the_library_is_read(folder: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    SentenceTransformer(str(folder), device="cpu").save(str(tmp_path / "saved"))
    found = describe(tmp_path / "saved")
    assert (found.pooling, found.max_tokens, found.modules) == (("mean",), 48, describe(folder).modules)
    assert found.config_digest == describe(folder).config_digest


def _weights(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["embeddings.LayerNorm.bias"] = weights["embeddings.LayerNorm.bias"] + 1
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize(
    "touch",
    [
        _weights,
        lambda folder: change(folder / "tokenizer_config.json", do_lower_case=False),
        lambda folder: change(folder / "1_Pooling/config.json", pooling_mode="cls"),
        lambda folder: change(folder / "sentence_bert_config.json", max_seq_length=32),
        lambda folder: change(folder / "config.json", layer_norm_eps=0.1),
        lambda folder: change(
            folder / "config_sentence_transformers.json", prompts={"p": "a: "}, default_prompt_name="p"
        ),
    ],
)
def test_whatever_shapes_a_vector_changes_the_fingerprint(folder: Path, touch: Callable[[Path], None]) -> None:
    before = describe(folder).fingerprint("{text}")
    touch(folder)
    assert describe(folder).fingerprint("{text}") != before


def test_the_template_and_overrides_change_the_fingerprint(folder: Path) -> None:
    found = describe(folder)
    others = {found.fingerprint("{title}"), describe(folder, max_tokens=20).fingerprint("{text}")}
    others |= {
        describe(folder, prompt="x: ").fingerprint("{text}"),
        describe(folder, pooling="max").fingerprint("{text}"),
    }
    assert len(others | {found.fingerprint("{text}")}) == 5


def test_the_fingerprint_of_a_model_whose_long_documents_are_truncated_is_what_it_always_was() -> None:
    assert describe(minilm_path()).fingerprint("{text}") == "5b3566d8b054e236"


def test_the_version_of_icu_changes_the_fingerprint(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a text may be cut changes with it."""
    before = describe(folder, overlong="chunk")
    monkeypatch.setattr("icu4py.icu_version_info", (1, 2))
    after = describe(folder, overlong="chunk")
    assert before.chunk is not None
    assert after.chunk == {**before.chunk, "icu": 1}
    assert after.fingerprint("{text}") != before.fingerprint("{text}")


def test_how_long_documents_are_cut_changes_the_fingerprint(folder: Path) -> None:
    cut: list[dict[str, Any]] = [{}, {"chunk": {"tokens": 40}}, {"chunk": {"overlap_tokens": 8}}]
    found = [describe(folder, overlong="chunk", **settings) for settings in cut]
    fingerprints = {description.fingerprint("{text}") for description in [describe(folder), *found]}
    assert len(fingerprints) == 4
    spelled_out = found[0].spelled_out("{text}")
    assert spelled_out["overlong"] == "chunk"
    assert set(spelled_out["chunk"]) == {"name", "rules", "icu", "tokens", "overlap_tokens"}
    for name, value in (("rules", 0), ("icu", 1)):
        other = {**spelled_out, "chunk": {**spelled_out["chunk"], name: value}}
        assert encoder_fingerprint(other) not in fingerprints


def test_place_name_compute_and_query_prompt_do_not_change_the_fingerprint(folder: Path, tiny: Path) -> None:
    change(folder / "config.json", transformers_version="9", _name_or_path="elsewhere")
    other = describe(folder, query_prompt="q: ", compute="float32", token_budget=7)
    assert other.fingerprint("{text}") == describe(tiny).fingerprint("{text}")


@pytest.mark.parametrize(
    ("settings", "prompt", "query_prompt"),
    [
        ({}, "doc: ", "query: "),  # encode takes the default prompt, encode_query the one called "query"
        ({"prompt": "passage"}, "passage: ", "query: "),
        ({"prompt": "as is "}, "as is ", "query: "),
        ({"prompt": ""}, "", "query: "),
        ({"query_prompt": "passage"}, "doc: ", "passage: "),
        ({"query_prompt": ""}, "doc: ", ""),
    ],
)
def test_prompts_resolve_by_name_else_literally(
    folder: Path, settings: dict[str, Any], prompt: str, query_prompt: str
) -> None:
    prompts = {"query": "query: ", "passage": "passage: ", "default": "doc: "}
    change(folder / "config_sentence_transformers.json", prompts=prompts, default_prompt_name="default")
    found = describe(folder, **settings)
    assert (found.prompt, found.query_prompt) == (prompt, query_prompt)


def test_without_a_query_prompt_queries_have_none_as_in_the_library(folder: Path) -> None:
    change(folder / "config_sentence_transformers.json", prompts={"d": "doc: "}, default_prompt_name="d")
    assert describe(folder).query_prompt == ""


def test_max_tokens_falls_back_to_the_tokenizer_and_the_positions(folder: Path) -> None:
    (folder / "sentence_bert_config.json").unlink()
    change(folder / "tokenizer_config.json", model_max_length=50)
    assert describe(folder).max_tokens == 50
    change(folder / "tokenizer_config.json", model_max_length=10**30)
    assert describe(folder).max_tokens == 64
    change(folder / "config.json", max_position_embeddings=-1)
    with pytest.raises(ModelError, match=r"set encoder\.max_tokens"):
        describe(folder)


def _modules(folder: Path, *types: str) -> None:
    paths = ["", "1_Pooling", "2_Normalize", "3_X"]
    write_json(
        folder / "modules.json", [{"path": path, "type": kind} for path, kind in zip(paths, types, strict=False)]
    )


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _plain(folder: Path, architecture: str, model_type: str = "bert", **config: Any) -> None:
    (folder / "modules.json").unlink()
    change(folder / "config.json", architectures=[architecture], model_type=model_type, **config)


def _dense(folder: Path, **config: Any) -> None:
    """A third module, of 20 dimensions, with weights."""
    from safetensors.numpy import save_file

    _modules(folder, T, P, "sentence_transformers.models.Dense")
    values = {"in_features": 32, "out_features": 20, "bias": False, **config}
    change(folder / "2_Normalize/config.json", **values)
    save_file({"linear.weight": np.ones((20, 32), np.float32)}, folder / "2_Normalize/model.safetensors")


def _dense_behind_two(folder: Path) -> None:
    _dense(folder)
    change(folder / "1_Pooling/config.json", pooling_mode=["cls", "max"])


def _pickled_dense(folder: Path) -> None:
    _dense(folder)
    (folder / "2_Normalize/model.safetensors").rename(folder / "2_Normalize/pytorch_model.bin")


def _truncated(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-10])


ST = "sentence_transformers.models"
T, P = f"{ST}.Transformer", f"{ST}.Pooling"


@pytest.mark.parametrize(
    ("spoil", "error", "sentence"),
    [
        (lambda f: (f / "model.safetensors").unlink(), ModelError, "no safetensors weights.*has none"),
        (_pickled, ModelError, r"only pickled ones \(pytorch_model.bin\).*save_pretrained"),
        (_truncated, ModelError, "weights cannot be read.*fetch the model again"),
        (lambda f: change(f / "model.safetensors.index.json", weight_map={"a": "x"}), None, ""),
        (lambda f: _plain(f, "LlamaForCausalLM", "llama"), ModelError, "decoder-only.*pooling.*sentence-transformers"),
        (lambda f: _plain(f, "Qwen3Model", "qwen3"), ModelError, "decoder-only"),
        (lambda f: _plain(f, "BertForSequenceClassification"), ModelError, "cross-encoder or classifier"),
        (lambda f: _plain(f, "BertForTokenClassification"), ModelError, "cross-encoder or classifier"),
        (lambda f: _plain(f, "HF_ColBERT"), ModelError, r"multi-vector \(ColBERT\) model"),
        (lambda f: _plain(f, "ColQwen2ForRetrieval", "colqwen2"), ModelError, "multi-vector"),
        (lambda f: _plain(f, "CLIPModel", "clip"), ModelError, r"more than texts \(CLIPModel\)"),
        (lambda f: _plain(f, "GPT2LMHeadModel", "gpt2"), ModelError, "decoder-only.*encoder.pooling"),
        (lambda f: _plain(f, "BartModel", "bart", is_encoder_decoder=True), NotSupportedError, "encoder-decoder.*t5"),
        (lambda f: write_json(f / "adapter_config.json", {}), NotSupportedError, "adapters.*merge it"),
        (lambda f: _modules(f, T), ModelError, r"no Pooling module; set encoder\.pooling"),
        (lambda f: _modules(f, T, P, f"{ST}.LSTM"), NotSupportedError, "LSTM modules"),
        (lambda f: _modules(f, f"{ST}.StaticEmbedding"), NotSupportedError, "StaticEmbedding modules"),
        (lambda f: _modules(f, f"{ST}.CLIPModel"), ModelError, "a CLIP model"),
        (lambda f: _modules(f, T, "sentence_transformers.sparse_encoder.models.SpladePooling"), ModelError, "sparse"),
        (lambda f: _modules(f, T, "pylate.models.Dense.Dense"), ModelError, "multi-vector"),
        (lambda f: _modules(f, P, T), NotSupportedError, "in this order"),
        (lambda f: _modules(f, T, P, P), NotSupportedError, "in this order"),
        (lambda f: _modules(f, T, f"{ST}.LayerNorm", P), NotSupportedError, "LayerNorm from sentence_embedding"),
        (lambda f: _modules(f, "custom.Transformer", P), ModelError, "code of its own"),
        (lambda f: write_json(f / "modules.json", [{"path": "../x", "type": T}]), ModelError, "points outside"),
        (_dense, None, ""),
        (_pickled_dense, ModelError, r"2_Normalize has only pickled ones \(pytorch_model.bin\)"),
        (lambda f: _dense(f, out_features=21), ModelError, "weights in 2_Normalize.*20.*21"),
        (lambda f: _dense(f, bias=True), ModelError, "weights in 2_Normalize.*linear.bias"),
        (_dense_behind_two, ModelError, "2_Normalize.*takes 32.*given 64"),
        (lambda f: _dense(f, in_features=None), ModelError, "config.json.*not whole"),
        (lambda f: _dense(f, activation_function="os.system"), NotSupportedError, "activation function os.system"),
        (lambda f: _dense(f, activation_function="torch.nn.PReLU"), NotSupportedError, "torch.nn.PReLU"),
        (lambda f: _dense(f, module_output_name="x"), NotSupportedError, "Dense from sentence_embedding to x"),
        (lambda f: change(f / "1_Pooling/config.json", pooling_mode="loudest"), NotSupportedError, "pooling loudest"),
        (lambda f: change(f / "config_sentence_transformers.json", model_type="CrossEncoder"), ModelError, "CrossEnc"),
        (lambda f: change(f / "config_sentence_transformers.json", model_type="SparseEncoder"), ModelError, "sparse"),
        (
            lambda f: change(f / "sentence_bert_config.json", processor_kwargs={"a": 1}),
            NotSupportedError,
            "processor_k",
        ),
        (lambda f: change(f / "sentence_bert_config.json", model_args={"torch_dtype": "float16"}), None, ""),
        (lambda f: (f / "config.json").write_text("{"), ModelError, "cannot be read.*config.json"),
        (lambda f: (f / "modules.json").write_text("{}"), ModelError, "holds dict"),
        (lambda f: [p.unlink() for p in f.glob("tokenizer.json")], ModelError, "no tokenizer"),
    ],
)
def test_what_cannot_be_encoded_with_is_refused_by_name(
    folder: Path, spoil: Callable[[Path], object], error: type[UsageError] | None, sentence: str
) -> None:
    spoil(folder)
    if error is None:
        describe(folder)
        return
    with pytest.raises(error, match=sentence) as caught:
        describe(folder)
    assert "\n" not in str(caught.value)


def test_max_tokens_above_the_models_positions_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="65 is above the 64 positions"):
        describe(folder, max_tokens=65)


def test_files_that_changed_since_they_were_described_are_refused(folder: Path) -> None:
    """A new model never mixes with an old one, not even within a run."""
    found = describe(folder)
    check_files(folder, found.weights, "m")
    _weights(folder)
    with pytest.raises(ModelError, match="not the one that the run began with"):
        check_files(folder, found.weights, "m")


def test_the_description_is_frozen(folder: Path) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        describe(folder).dim = 1  # type: ignore[misc]


def test_a_plain_folder_is_pooled_by_mean_with_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    described = describe(folder)
    assert caplog.messages == []
    (folder / "modules.json").unlink()
    found = describe(folder)
    assert (found.pooling, found.modules) == (("mean",), ("Transformer", "Pooling"))
    assert found.dim == described.dim
    assert "not trained for similarity" in caplog.text


def test_a_decoder_is_pooled_as_its_config_or_the_runs_says(folder: Path) -> None:
    _plain(folder, "Qwen3ForCausalLM", "qwen3")
    assert describe(folder, pooling="lasttoken").pooling == ("lasttoken",)
    _modules(folder, T, P)
    change(folder / "1_Pooling/config.json", pooling_mode="lasttoken")
    change(folder / "tokenizer_config.json", padding_side="left")
    assert describe(folder).pooling == ("lasttoken",)


@pytest.mark.parametrize(
    ("config", "modes"),
    [
        ({"pooling_mode": "weightedmean"}, ("weightedmean",)),
        ({"pooling_mode": ["mean", "cls"]}, ("mean", "cls")),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, ("cls", "mean")),
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, ("lasttoken",)),
        ({"pooling_mode_mean_tokens": False}, ("mean",)),
        ({"pooling_mode": "max", "pooling_mode_cls_token": True}, ("max",)),
    ],
)
def test_pooling_is_read_in_both_spellings_in_the_librarys_order(
    folder: Path, config: dict[str, Any], modes: tuple[str, ...]
) -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling

    write_json(folder / "1_Pooling/config.json", {"word_embedding_dimension": 32, **config})
    found = describe(folder)
    assert found.pooling == modes
    of_library = Pooling.load(str(folder), subfolder="1_Pooling")
    assert (found.dim, found.pooling) == (
        of_library.get_embedding_dimension(),
        (of_library.pooling_mode,) if isinstance(of_library.pooling_mode, str) else of_library.pooling_mode,
    )


def test_the_dim_is_that_of_what_is_written(folder: Path) -> None:
    _dense(folder)
    assert (describe(folder).dim, describe(folder, truncate_dim=8).dim) == (20, 8)
    change(folder / "config_sentence_transformers.json", truncate_dim=9)
    assert (describe(folder).dim, describe(folder, truncate_dim=8).dim) == (9, 8)
    change(folder / "config_sentence_transformers.json", truncate_dim=90)  # the library keeps what there is
    assert (describe(folder).dim, describe(folder).truncate_dim) == (20, None)
    with pytest.raises(ModelError, match="encoder.truncate_dim: 21 is above the 20 dimensions"):
        describe(folder, truncate_dim=21)


def _other_weights(folder: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"linear.weight": np.zeros((20, 32), np.float32)}, folder / "2_Normalize/model.safetensors")


@pytest.mark.parametrize(
    "touch",
    [
        _other_weights,
        lambda folder: change(folder / "2_Normalize/config.json", activation_function="torch.nn.ReLU"),
        lambda folder: change(folder / "1_Pooling/config.json", pooling_mode="lasttoken"),
        lambda folder: change(folder / "1_Pooling/config.json", include_prompt=False),
        lambda folder: change(folder / "config_sentence_transformers.json", truncate_dim=9),
        lambda folder: _modules(folder, T, P, f"{ST}.Dense", f"{ST}.Normalize"),
    ],
)
def test_whatever_modules_do_to_a_vector_changes_the_fingerprint(folder: Path, touch: Callable[[Path], object]) -> None:
    _dense(folder)
    before = describe(folder, prompt="a: ").fingerprint("{text}")
    touch(folder)
    assert describe(folder, prompt="a: ").fingerprint("{text}") != before


def test_names_of_folders_and_a_prompt_that_is_not_there_do_not(folder: Path) -> None:
    _dense(folder)
    before = describe(folder, query_prompt="q: ").fingerprint("{text}")
    change(folder / "1_Pooling/config.json", include_prompt=False)
    assert describe(folder, query_prompt="q: ").fingerprint("{text}") == before
    (folder / "2_Normalize").rename(folder / "2_Dense")
    (folder / "modules.json").write_text((folder / "modules.json").read_text().replace("2_Normalize", "2_Dense"))
    assert describe(folder).fingerprint("{text}") == before
    assert encoder_fingerprint(describe(folder).spelled_out("{text}")) == before, "as a manifest holds it"
    assert describe(folder, truncate_dim=20).fingerprint("{text}") == before, "all there are"


def test_poolings_in_another_order_are_another_encoder(folder: Path) -> None:
    found = set()
    for modes in (["cls", "mean"], ["mean", "cls"], ["mean"], "mean"):
        change(folder / "1_Pooling/config.json", pooling_mode=modes)
        found.add(describe(folder).fingerprint("{text}"))
    assert len(found) == 3
