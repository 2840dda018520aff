"""What a model folder does to a text: read from its JSON files alone, before any work.

The folder is in sentence-transformers layout, where `modules.json` names modules in order (see
`modules`), or a plain transformers folder, which gets mean pooling and a warning: nobody trained
it for similarity. What makes no single dense vector of a text is refused (see `refusals`).

Prompts, lengths and truncate_dim are resolved as `SentenceTransformer.encode` and `encode_query`
(6.2) resolve them. The description is frozen, JSON-able and small; it travels to every worker,
and its digests let a worker prove that it loads the very same files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.chunks import chunker_rules
from pipeline.config import EncoderSettings, PoolingMode, redact_uri
from pipeline.errors import ModelError, NotSupportedError
from pipeline.model.files import digests, read_json, tokenizer_files, weight_files
from pipeline.model.modules import Layer, Module, Pooling, list_modules, read_layers, read_pooling
from pipeline.model.refusals import ENCODER_CLASSES, check_architecture, check_settings

log = logging.getLogger(__name__)

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
# What architectures call the width of what they make.
_HIDDEN_DIMS = ("hidden_size", "dim", "d_model", "n_embd", "emb_dim")
# Their positions begin behind the padding id, so two fewer tokens fit than there are positions.
_OFFSET_POSITIONS = frozenset(
    (
        *("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "roberta-prelayernorm", "longformer"),
        *("data2vec-text", "ibert", "xmod"),
    )
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
    pooling: tuple[PoolingMode, ...]
    """One, or several whose vectors are joined in this order."""
    dim: int
    """Of the vectors that are written."""
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
    include_prompt: bool = True
    """Whether the prompt's tokens take part in pooling."""
    layers: tuple[Layer, ...] = ()
    """Of each Dense and LayerNorm among the modules, in order."""
    truncate_dim: int | None = None
    """How many dimensions of a vector are kept, if not all."""

    def spelled_out(self, template: str) -> dict[str, Any]:
        """As a JSON value for the manifest. `template` is the text template of the input."""
        fields = json.loads(json.dumps(dataclasses.asdict(self)))
        if len(self.pooling) == 1:
            fields["pooling"] = self.pooling[0]
        # Absent where they say nothing, as in the manifests of a time that did not know them.
        if self.include_prompt:
            del fields["include_prompt"]
        if not self.layers:
            del fields["layers"]
        if self.chunk is None:
            del fields["chunk"]
        return {**fields, "template": template, "overlong": "truncate" if self.chunk is None else "chunk"}

    def fingerprint(self, template: str) -> str:
        """16 hex digits over all that shapes a vector: not the model's name or place, not the query prompt."""
        return encoder_fingerprint(self.spelled_out(template))


def encoder_fingerprint(spelled_out: Mapping[str, Any]) -> str:
    """As `ModelDescription.fingerprint`, of what `spelled_out` made, such as a manifest holds it."""
    elsewhere = ["model", "revision", "architecture", "transformer", "query_prompt"]
    if not spelled_out.get("prompt"):
        elsewhere.append("include_prompt")  # without a prompt there is nothing to leave out of a document
    shaping = {key: value for key, value in spelled_out.items() if key not in elsewhere}
    if "layers" in shaping:
        shaping["layers"] = [{key: layer[key] for key in layer if key != "folder"} for layer in shaping["layers"]]
    return hashlib.blake2b(json.dumps(shaping, sort_keys=True).encode(), digest_size=8).hexdigest()


def describe_model(path: str | Path, settings: EncoderSettings) -> ModelDescription:
    """Read the model folder at `path`, with the config's overrides applied.

    Raises:
        ModelError: not a model, not of a kind that makes embeddings, or its files are missing or broken.
        NotSupportedError: a kind of module or setting that this version does not do.
    """
    path, name = Path(path), redact_uri(settings.model)
    if not path.is_dir():
        raise ModelError(f"model not found: {path} is no folder")
    listed = list_modules(path, name)
    modules = [Module("Transformer", "", {})] if listed is None else listed
    transformer = path / modules[0].folder
    config = _transformer_config(transformer, name, is_plain=listed is None)
    pooling = read_pooling(modules, settings.pooling, name)
    check_architecture(config, name, pools=pooling is not None)
    top = read_json(path / "config_sentence_transformers.json")
    own: dict[str, Any] = next(
        (found for file in _TRANSFORMER_SETTINGS if (found := read_json(transformer / file))), {}
    )
    check_settings(top, own, name)
    pooling = pooling or _guessed(name, is_plain=listed is None)
    if listed is None:
        _warn_of_plain(name, pooling)
    if "Pooling" not in [module.kind for module in modules]:
        modules.insert(1, Module("Pooling", "", {}))
    layers, dim = read_layers(path, modules, name, _hidden_dim(config, modules, name), len(pooling.modes))
    truncate_dim = _truncate_dim(dim, top, settings)
    prompt, query_prompt = _prompts(top, settings)
    tokenizer_config = read_json(transformer / "tokenizer_config.json")
    return ModelDescription(
        model=name,
        revision=settings.revision,
        architecture=", ".join(config.get("architectures") or [str(config.get("model_type"))]),
        transformer=modules[0].folder,
        modules=tuple(module.kind for module in modules),
        pooling=pooling.modes,
        dim=truncate_dim or dim,
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
        include_prompt=pooling.include_prompt,
        layers=tuple(layers),
        truncate_dim=truncate_dim,
    )


def _transformer_config(folder: Path, name: str, *, is_plain: bool) -> dict[str, Any]:
    if (folder / "adapter_config.json").is_file():
        raise NotSupportedError(
            f"adapters over another model (adapter_config.json), as {name} is; merge it into that model and save that"
        )
    config: dict[str, Any] = read_json(folder / "config.json")
    if not config and is_plain:
        raise ModelError(
            f"no model in {folder}: it has neither modules.json nor config.json; give a folder in "
            "sentence-transformers layout"
        )
    if not config:
        raise ModelError(f"model {name} has no config.json in {folder}")
    return config


def _guessed(name: str, *, is_plain: bool) -> Pooling:
    if not is_plain:
        raise ModelError(f"model {name} has no Pooling module; set encoder.pooling, to mean for instance")
    return Pooling(("mean",), include_prompt=True)


def _warn_of_plain(name: str, pooling: Pooling) -> None:
    log.warning(
        "%s is a plain transformers model, without modules.json: it gets %s pooling, but was not trained for "
        "similarity, and its vectors may rank badly; prefer a sentence-embedding model",
        name,
        pooling.modes[0],
    )


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


def _hidden_dim(config: Mapping[str, Any], modules: list[Module], name: str) -> int:
    pooling = next(module.config for module in modules if module.kind == "Pooling")
    told = [config.get(key) for key in _HIDDEN_DIMS]
    told += [pooling.get(key) for key in ("embedding_dimension", "word_embedding_dimension")]
    dim = next((value for value in told if isinstance(value, int)), None)
    if dim is None:
        raise NotSupportedError(f"a config.json without hidden_size, as {name} has")
    return dim


def _truncate_dim(dim: int, top: Mapping[str, Any], settings: EncoderSettings) -> int | None:
    """How many of `dim` dimensions are kept; None for all."""
    if settings.truncate_dim is not None and settings.truncate_dim > dim:
        name = redact_uri(settings.model)
        raise ModelError(f"encoder.truncate_dim: {settings.truncate_dim} is above the {dim} dimensions of {name}")
    wanted = top.get("truncate_dim") if settings.truncate_dim is None else settings.truncate_dim
    return int(wanted) if wanted and int(wanted) < dim else None


def _max_tokens(
    config: Mapping[str, Any], tokenizer: Mapping[str, Any], own: Mapping[str, Any], settings: EncoderSettings
) -> int:
    positions = config.get("max_position_embeddings", config.get("n_positions", -1))
    if config.get("model_type") in ENCODER_CLASSES:
        positions = -1  # theirs are relative: n_positions is what they were trained with
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
