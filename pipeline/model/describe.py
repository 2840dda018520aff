"""What a model folder does to a text: read from its JSON files alone, before any work.

The folder is in sentence-transformers layout: `modules.json` names modules in order, each with
a folder of its own. Three kinds are built: Transformer, Pooling (cls, mean, max), Normalize.
Everything else is refused here by name, in a sentence, because it would otherwise fail, or
worse, work differently, in each of a hundred actors. `modules.json` spells a type in more than
one way (`sentence_transformers.models.Pooling` up to version 5,
`sentence_transformers.sentence_transformer.modules.pooling.Pooling` since); the class name at
the end is the same in all.

Prompts and lengths are resolved as `SentenceTransformer.encode` and `encode_query` (6.2) resolve
them. The description is frozen, JSON-able and small; it travels to every worker, and its digests
let a worker prove that it loads the very same files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, cast, get_args

from pipeline.chunks import chunker_rules
from pipeline.config import EncoderSettings, redact_uri
from pipeline.errors import ModelError, NotSupportedError
from pipeline.model.files import digests, read_json, tokenizer_files, weight_files

PoolingMode = Literal["cls", "mean", "max"]

# Which of these a model has says how old it is, no more.
_TRANSFORMER_SETTINGS = [
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
]
_LEGACY_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_DECODER_TYPES = frozenset(
    [
        *("bloom", "codegen", "cohere", "falcon", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_bigcode", "gpt_neo"),
        *("gpt_neox", "gptj", "llama", "mistral", "mixtral", "mpt", "olmo", "olmo2", "opt", "phi", "phi3", "qwen2"),
        *("qwen3", "stablelm", "starcoder2", "xglm"),
    ]
)
# Their positions begin behind the padding id, so two fewer tokens fit than there are positions.
_OFFSET_POSITIONS = frozenset(
    ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "roberta-prelayernorm")
)
# Keys of config.json that say how a file came to be, not what it computes.
_NO_MEANING = frozenset(
    ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "_commit_hash", "architectures")
)
_NO_LIMIT = 10**9


@dataclass(frozen=True)
class ModelDescription:
    """What makes the vectors, spelled out."""

    model: str
    """As the config has it, without credentials."""
    revision: str | None
    architecture: str
    transformer: str
    """The Transformer module's folder, relative to the model's; "" is the folder itself."""
    modules: tuple[str, ...]
    """Kinds in order, such as ("Transformer", "Pooling", "Normalize")."""
    pooling: PoolingMode
    dim: int
    max_tokens: int
    """Most tokens of a sequence, special tokens and prompt included."""
    truncation_side: Literal["left", "right"]
    do_lower_case: bool
    pad_token_id: int
    prompt: str
    """Put before a document's text; "" for none."""
    query_prompt: str
    weights: Mapping[str, str]
    """File name -> sha256."""
    tokenizer: Mapping[str, str]
    """File name -> sha256."""
    config_digest: str
    """Of what shapes a vector in the transformer's config.json."""
    chunk: Mapping[str, Any] | None = None
    """How documents that do not fit are cut into windows; None: they are truncated."""

    def spelled_out(self, template: str) -> dict[str, Any]:
        """As a JSON value for the manifest. `template` is the text template of the input."""
        fields = json.loads(json.dumps(dataclasses.asdict(self)))
        overlong = "chunk"
        if self.chunk is None:
            overlong = "truncate"
            del fields["chunk"]  # as in manifests of a time that did not know it
        return {**fields, "template": template, "overlong": overlong, "truncate_dim": None}

    def fingerprint(self, template: str) -> str:
        """16 hex digits over all that shapes a vector: not the model's name or place, not the query prompt."""
        return encoder_fingerprint(self.spelled_out(template))


def encoder_fingerprint(spelled_out: Mapping[str, Any]) -> str:
    """As `ModelDescription.fingerprint`, of what `spelled_out` made, such as a manifest holds it."""
    elsewhere = ("model", "revision", "architecture", "transformer", "query_prompt")
    shaping = {key: value for key, value in spelled_out.items() if key not in elsewhere}
    return hashlib.blake2b(json.dumps(shaping, sort_keys=True).encode(), digest_size=8).hexdigest()


def describe_model(path: str | Path, settings: EncoderSettings) -> ModelDescription:
    """Read the model folder at `path`, with the config's overrides applied.

    Raises:
        ModelError: not a model, not of a kind that makes embeddings, or its files are missing or broken.
        NotSupportedError: a kind of module, pooling or setting that this version does not do.
    """
    path, name = Path(path), redact_uri(settings.model)
    if not path.is_dir():
        raise ModelError(f"model not found: {path} is no folder")
    modules = _modules(path, name)
    kinds = tuple(kind for kind, _ in modules)
    transformer = path / modules[0][1]
    config = read_json(transformer / "config.json")
    if not config:
        raise ModelError(f"model {name} has no config.json in {transformer}")
    _check_architecture(config, name, pools="Pooling" in kinds or settings.pooling is not None)
    top = read_json(path / "config_sentence_transformers.json")
    own: dict[str, Any] = next(
        (found for file in _TRANSFORMER_SETTINGS if (found := read_json(transformer / file))), {}
    )
    _check_settings(top, own, name)
    prompt, query_prompt = _prompts(top, settings)
    tokenizer_config = read_json(transformer / "tokenizer_config.json")
    if tokenizer_config.get("padding_side") == "left":
        raise NotSupportedError(f"a tokenizer that pads on the left, as {name} has")
    return ModelDescription(
        model=name,
        revision=settings.revision,
        architecture=", ".join(config.get("architectures") or [str(config.get("model_type"))]),
        transformer=modules[0][1],
        modules=kinds if "Pooling" in kinds else (kinds[0], "Pooling", *kinds[1:]),
        pooling=_pooling(path, modules, settings, has_prompt=bool(prompt or query_prompt)),
        dim=_dim(config, name),
        max_tokens=_max_tokens(config, tokenizer_config, own, settings),
        truncation_side="left" if tokenizer_config.get("truncation_side") == "left" else "right",
        do_lower_case=bool(own.get("do_lower_case")),
        pad_token_id=int(config.get("pad_token_id") or 0),
        prompt=prompt,
        query_prompt=query_prompt,
        weights=digests(transformer, weight_files(transformer, name)),
        tokenizer=digests(transformer, tokenizer_files(transformer, name)),
        config_digest=_config_digest(config),
        chunk={**chunker_rules(), **settings.chunk.model_dump()} if settings.overlong == "chunk" else None,
    )


def _modules(path: Path, name: str) -> list[tuple[str, str]]:
    """(kind, folder) of each module, in order; checked to be kinds that are built, in an order that makes sense."""
    listed = read_json(path / "modules.json", kind=list)
    if not listed:
        config = read_json(path / "config.json")
        if not config:
            raise ModelError(
                f"no model in {path}: it has no modules.json; give a folder in sentence-transformers layout"
            )
        _check_architecture(config, name, pools=False)
        raise NotSupportedError(
            f"a plain transformers folder without modules.json, as {name} is; load it with sentence-transformers "
            "and save it, which writes down the pooling"
        )
    modules: list[tuple[str, str]] = []
    for module in listed:
        spelling, folder = str(module.get("type")), str(module.get("path", ""))
        if not spelling.startswith("sentence_transformers."):
            raise ModelError(f"model {name} brings code of its own ({spelling}), and no code of a model is ever run")
        if PurePosixPath(folder).is_absolute() or ".." in PurePosixPath(folder).parts:
            raise ModelError(f"modules.json of {name} points outside the model: {folder}")
        modules.append((spelling.rpartition(".")[2], folder))
    kinds = [kind for kind, _ in modules]
    for kind in kinds:
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise NotSupportedError(f"{kind} modules, as {name} has; Transformer, Pooling and Normalize are")
    if kinds not in (["Transformer", *rest] for rest in ([], ["Pooling"], ["Normalize"], ["Pooling", "Normalize"])):
        raise NotSupportedError(f"modules in this order, as {name} has them: {', '.join(kinds)}")
    return modules


def _check_architecture(config: Mapping[str, Any], name: str, *, pools: bool) -> None:
    architectures = [str(a) for a in config.get("architectures") or []]
    for architecture in architectures:
        if architecture.endswith("ForSequenceClassification"):
            raise ModelError(
                f"{name} is a cross-encoder or classifier ({architecture}): it scores texts and has no embedding for "
                "one; give a sentence-embedding model"
            )
    if config.get("is_encoder_decoder"):
        raise NotSupportedError(f"encoder-decoder models, as {name} is ({', '.join(architectures)})")
    decoder = config.get("model_type") in _DECODER_TYPES or any(a.endswith("ForCausalLM") for a in architectures)
    if decoder and not pools:
        raise ModelError(
            f"{name} is decoder-only ({', '.join(architectures) or config.get('model_type')}) and has no pooling "
            "config: only its last token has seen the whole text, so which pooling is right cannot be guessed; give "
            "its sentence-transformers version, with modules.json and a Pooling folder"
        )


def _check_settings(top: Mapping[str, Any], own: Mapping[str, Any], name: str) -> None:
    """Refuse what would make sentence-transformers do something else than Vecmill does."""
    kind = top.get("model_type", "SentenceTransformer")
    if kind != "SentenceTransformer":
        raise ModelError(f"{name} is a {kind}, which makes no single dense vector; give a sentence-embedding model")
    if top.get("truncate_dim") is not None:
        raise NotSupportedError(f"truncate_dim in the model's own config, as {name} has: {top['truncate_dim']}")
    for key in ("query_length", "document_length", "query_expansion"):
        if own.get(key) is not None:
            raise NotSupportedError(f"{key} in the model's own config, as {name} has: {own[key]}")
    for key in ("processing_kwargs", "model_args", "model_kwargs", "config_args", "config_kwargs", "tokenizer_args"):
        if own.get(key):
            raise NotSupportedError(f"{key} in the model's own config, as {name} has: {own[key]}")
    modalities = own.get("modality_config", {"text": {"method": "forward", "method_output_name": "last_hidden_state"}})
    text = modalities.get("text", {})
    output = text.get("method_output_name")
    plain = (text.get("method"), output) in (("forward", "last_hidden_state"), ("forward", ["last_hidden_state"]))
    if (
        "message" in modalities
        or not plain
        or own.get("transformer_task", "feature-extraction") != "feature-extraction"
    ):
        raise NotSupportedError(f"models with a chat template or several modalities, as {name} is")


def _prompts(top: Mapping[str, Any], settings: EncoderSettings) -> tuple[str, str]:
    """The texts put before documents and queries. A setting is a name the model knows, else it is the text."""
    known = {"query": "", "document": "", **{key: text or "" for key, text in (top.get("prompts") or {}).items()}}
    default = top.get("default_prompt_name")
    if default is not None and default not in known:
        raise ModelError(f"default_prompt_name of {settings.model} is none of its prompts: {default}")
    prompt = known.get(default, "") if settings.prompt is None else known.get(settings.prompt, settings.prompt)
    # The default prompt is for documents: encode_query falls back to "query" and, without one, to no prompt.
    query = "query" if settings.query_prompt is None else settings.query_prompt
    return prompt, known.get(query, query)


def _pooling(path: Path, modules: list[tuple[str, str]], settings: EncoderSettings, *, has_prompt: bool) -> PoolingMode:
    name = settings.model
    folder = next((folder for kind, folder in modules if kind == "Pooling"), None)
    for kind, normalize in modules:
        if (
            kind == "Normalize"
            and read_json(path / normalize / "config.json").get("module_input_name", "sentence_embedding")
            != "sentence_embedding"
        ):
            raise NotSupportedError(f"Normalize over tokens, as {name} has")
    own = read_json(path / folder / "config.json") if folder is not None else {}
    if not own.get("include_prompt", True) and has_prompt:
        raise NotSupportedError(f"pooling without the prompt's tokens (include_prompt: false), as {name} has")
    if settings.pooling is not None:
        return settings.pooling
    if folder is None:
        raise ModelError(f"model {name} has no Pooling module; set encoder.pooling to cls, mean or max")
    modes = own.get("pooling_mode") or [mode for key, mode in _LEGACY_POOLING.items() if own.get(key)] or "mean"
    mode = modes[0] if isinstance(modes, list) and len(modes) == 1 else modes
    if mode not in get_args(PoolingMode):
        shown = mode if isinstance(mode, str) else " + ".join(mode)
        raise NotSupportedError(f"pooling {shown}, as {name} has; cls, mean and max are")
    return cast(PoolingMode, mode)


def _dim(config: Mapping[str, Any], name: str) -> int:
    dim = config.get("hidden_size", config.get("dim"))
    if not isinstance(dim, int):
        raise NotSupportedError(f"a config.json without hidden_size, as {name} has")
    return dim


def _max_tokens(
    config: Mapping[str, Any], tokenizer: Mapping[str, Any], own: Mapping[str, Any], settings: EncoderSettings
) -> int:
    positions = config.get("max_position_embeddings", -1)
    limit = positions if isinstance(positions, int) and positions > 0 else _NO_LIMIT
    usable = limit
    if config.get("model_type") in _OFFSET_POSITIONS:
        usable -= int(config.get("pad_token_id") or 0) + 1
    if settings.max_tokens is not None:
        if settings.max_tokens > usable:
            raise ModelError(
                f"encoder.max_tokens: {settings.max_tokens} is above the {usable} positions of {settings.model}"
            )
        return settings.max_tokens
    wanted = own.get("max_seq_length") or min(int(tokenizer.get("model_max_length") or _NO_LIMIT), limit)
    if wanted >= _NO_LIMIT:
        raise ModelError(f"model {settings.model} names no longest sequence; set encoder.max_tokens")
    return min(int(wanted), usable)


def _config_digest(config: Mapping[str, Any]) -> str:
    meaning = {key: value for key, value in config.items() if key not in _NO_MEANING}
    return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()
