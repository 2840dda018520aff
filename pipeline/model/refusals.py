"""Models that make no single dense vector of a text, or not in a way that is built: refused here, by name.

What they are is told by the architecture in config.json, by the kinds of modules in modules.json,
and by the settings beside them. Said before any work, in a sentence, because it would otherwise
fail, or worse, work differently, in each of a hundred actors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.errors import ModelError, NotSupportedError

ENCODER_CLASSES = {
    "t5": "T5EncoderModel",
    "mt5": "MT5EncoderModel",
    "umt5": "UMT5EncoderModel",
    "longt5": "LongT5EncoderModel",
}
"""Encoder-decoders of which the encoder can be loaded alone: model_type -> class of transformers."""

_CLASSIFIERS = (
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
    "ForNextSentencePrediction",
)
_DECODER_ARCHITECTURES = ("ForCausalLM", "LMHeadModel")
# Families, by how their model_type begins: a base model ("Qwen3Model") does not say what it was trained for.
_DECODER_FAMILIES = (
    *("apertus", "arcee", "biogpt", "bitnet", "bloom", "codegen", "cohere", "ctrl", "dbrx", "deepseek", "ernie4"),
    *("exaone", "falcon", "gemma", "glm", "gpt", "granite", "helium", "hunyuan", "internlm", "jamba", "jetmoe", "lfm"),
    *("llama", "mamba", "minicpm", "minimax", "ministral", "mistral", "mixtral", "modernbert-decoder", "mpt"),
    *("nemotron", "olmo", "openai-gpt", "opt", "persimmon", "phi", "qwen", "recurrent_gemma", "rwkv", "seed_oss"),
    *("smollm", "stablelm", "starcoder", "xglm", "xlstm", "zamba"),
)
_OTHER_KINDS = {
    "CrossEncoder": "a cross-encoder, which scores pairs of texts and has no embedding for one",
    "LogitScore": "a cross-encoder, which scores pairs of texts and has no embedding for one",
    **dict.fromkeys(
        ("SparseEncoder", "SpladePooling", "MLMTransformer", "SparseAutoEncoder", "SparseStaticEmbedding", "IDF"),
        "a sparse encoder, which makes no dense vector",
    ),
    **dict.fromkeys(
        ("MultiVectorEncoder", "MultiVectorMask", "TokenPooling", "ColBERT"),
        "a multi-vector (ColBERT) model, which makes a vector for each token",
    ),
    "CLIPModel": "a CLIP model, of images and texts",
}
_PLAIN_TEXT = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
# Arguments kept with a model that shape no vector here.
_HARMLESS = frozenset(
    ("attn_implementation", "device_map", "dtype", "padding_side", "torch_dtype", "trust_remote_code", "use_fast")
)


def check_kind(kind: str, name: str) -> None:
    """Refuse a module, or a whole model, that sentence-transformers makes no dense vectors of a text with."""
    if kind in _OTHER_KINDS:
        raise ModelError(f"{name} is {_OTHER_KINDS[kind]} ({kind}); give a sentence-embedding model")


def check_architecture(config: Mapping[str, Any], name: str, *, pools: bool) -> None:
    """Refuse what the transformer's config.json shows to be another kind of model.

    Args:
        config: the transformer's config.json.
        name: the model's, for the sentence.
        pools: whether the model, or the config of the run, says how its tokens are pooled.
    """
    architectures = [str(a) for a in config.get("architectures") or []]
    kind = str(config.get("model_type"))
    shown = ", ".join(architectures) or kind
    for architecture in architectures:
        if architecture.endswith(_CLASSIFIERS):
            raise ModelError(
                f"{name} is a cross-encoder or classifier ({architecture}): it scores texts and has no embedding for "
                "one; give a sentence-embedding model"
            )
        if "ColBERT" in architecture or architecture.endswith("ForRetrieval"):
            check_kind("ColBERT", name)
    if kind.startswith(("clip", "siglip")) or "vision_config" in config or "audio_config" in config:
        raise ModelError(f"{name} is a model of more than texts ({shown}); give a sentence-embedding model")
    if config.get("is_encoder_decoder") and kind not in ENCODER_CLASSES:
        known = ", ".join(ENCODER_CLASSES)
        raise NotSupportedError(f"encoder-decoder models of this kind, as {name} is ({shown}); of {known} the encoder")
    is_decoder = kind.startswith(_DECODER_FAMILIES) or any(a.endswith(_DECODER_ARCHITECTURES) for a in architectures)
    if is_decoder and not pools:
        raise ModelError(
            f"{name} is decoder-only ({shown}) and has no pooling config: only its last token has seen the whole "
            "text, so which pooling is right cannot be guessed; give its sentence-transformers version, with "
            "modules.json and a Pooling folder, or set encoder.pooling (lasttoken, if it was trained with that)"
        )


def check_settings(top: Mapping[str, Any], own: Mapping[str, Any], name: str) -> None:
    """Refuse settings that would make sentence-transformers do something else than Vecmill does.

    Args:
        top: config_sentence_transformers.json.
        own: the Transformer module's settings.
        name: the model's, for the sentence.
    """
    kind = str(top.get("model_type", "SentenceTransformer"))
    check_kind(kind, name)
    if kind != "SentenceTransformer":
        raise ModelError(f"{name} is a {kind}, which makes no single dense vector; give a sentence-embedding model")
    for key in ("query_length", "document_length", "query_expansion", "tokenizer_name_or_path"):
        if own.get(key) is not None:
            raise NotSupportedError(f"{key} in the model's own config, as {name} has: {own[key]}")
    for part in ("model", "config", "tokenizer", "processor", "processing"):
        for key in (f"{part}_args", f"{part}_kwargs"):
            if any(argument not in _HARMLESS for argument in own.get(key) or ()):
                raise NotSupportedError(f"{key} in the model's own config, as {name} has: {own[key]}")
    modalities = own.get("modality_config", _PLAIN_TEXT)
    text = modalities.get("text", {})
    output = text.get("method_output_name")
    plain = (text.get("method"), output) in (("forward", "last_hidden_state"), ("forward", ["last_hidden_state"]))
    task = own.get("transformer_task", "feature-extraction")
    if "message" in modalities or not plain or task != "feature-extraction":
        raise NotSupportedError(f"models with a chat template or several modalities, as {name} is")
