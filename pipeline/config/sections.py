"""The sections of the config as frozen models: every key with its default, and what is refused here."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ByteSize, Field, field_validator, model_validator

from pipeline.config.inputs import Csv, Input, Section
from pipeline.errors import ConfigError, NotSupportedError

# Raised by one when the same config and input would give other rows than before.
ROW_FORMAT_VERSION = 1


class Store(Section):
    """Where snapshots go, and as what."""

    uri: str = Field(min_length=1)
    dtype: Literal["float16", "float32"] = "float16"
    keep_text: bool = False
    quarantine_text: bool = False
    storage_options: dict[str, Any] = Field(default_factory=dict, repr=False)


class Chunk(Section):
    """Windows over long documents (`overlong: chunk`)."""

    tokens: int | None = Field(default=None, gt=0)
    """Of a window's own text; None: what the model takes, less prompt and special tokens."""
    overlap_tokens: int = Field(default=32, ge=0)
    """The most that a window shares with the one before; never more than half of it."""

    @model_validator(mode="after")
    def _moves_on(self) -> Chunk:
        if self.tokens is not None and self.overlap_tokens >= self.tokens:
            raise ConfigError(
                f"encoder.chunk.overlap_tokens: {self.overlap_tokens} is not below encoder.chunk.tokens: {self.tokens}"
            )
        return self


PoolingMode = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]


class EncoderSettings(Section):
    """The model and how it is used."""

    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    """A hub id, a local folder, or an object-storage prefix."""
    revision: str | None = None
    prompt: str | None = None
    query_prompt: str | None = None
    pooling: PoolingMode | None = None
    """Overrides the model's own."""
    max_tokens: int | None = Field(default=None, gt=2)
    overlong: Literal["truncate", "chunk"] = "truncate"
    chunk: Chunk = Chunk()
    truncate_dim: int | None = Field(default=None, gt=0)
    """The first so many dimensions, of unit norm again; None: as many as the model says."""
    compute: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    token_budget: Literal["auto"] | int = "auto"
    """Most padded tokens (B x L) in one forward pass."""
    trust_remote_code: bool = False

    @field_validator("model")
    @classmethod
    def _folders_are_absolute(cls, value: str) -> str:
        # The manifest tells it, and whoever searches may stand elsewhere.
        return str(Path(value).resolve()) if Path(value).is_dir() else value

    @model_validator(mode="after")
    def _supported(self) -> EncoderSettings:
        if self.overlong != "chunk" and self.chunk != Chunk():
            raise ConfigError("encoder.chunk is set, and encoder.overlong is truncate; set encoder.overlong=chunk")
        if self.trust_remote_code:
            raise NotSupportedError("encoder.trust_remote_code: true; no code of a model is ever run")
        if isinstance(self.token_budget, int) and self.token_budget < 1:
            raise ConfigError(f"encoder.token_budget must be positive: {self.token_budget}")
        return self


class SplitBounds(Section):
    """The most that one split, and so one embedding shard, may hold."""

    max_rows: Literal["auto"] | int = "auto"
    max_bytes: ByteSize = ByteSize(64 * 2**20)

    @model_validator(mode="after")
    def _positive(self) -> SplitBounds:
        if not 1 <= self.num_rows <= MAX_SHARD_ROWS:
            raise ConfigError(f"splits.max_rows must be from 1 to {MAX_SHARD_ROWS}: {self.max_rows}")
        if self.max_bytes < 1:
            raise ConfigError(f"splits.max_bytes must be positive: {self.max_bytes}")
        if self.max_bytes > MAX_SPLIT_BYTES:
            raise ConfigError(f"splits.max_bytes must be at most 1GiB: {self.max_bytes}")
        return self

    @property
    def num_rows(self) -> int:
        """`max_rows`, resolved. The default is chosen from the curve in jobs/benchmark.md."""
        return AUTO_MAX_ROWS if self.max_rows == "auto" else self.max_rows


AUTO_MAX_ROWS = 10_000

# More rows would not fit the one page that makes vectors addressable (pipeline.write).
MAX_SHARD_ROWS = 2**20

# A column of Arrow strings ends at 2 GiB.
MAX_SPLIT_BYTES = 2**30


class PoolSize(Section):
    """An actor pool that grows and shrinks."""

    min: int = Field(ge=1)
    max: int = Field(ge=1)


class Cluster(Section):
    """Where it runs."""

    address: str | None = None
    """A Ray address; None: RAY_ADDRESS, or Ray starts in place."""
    encoders: Literal["auto"] | int | PoolSize = "auto"
    """auto: as many as there are GPUs now, or what fills the CPUs; fixed either way."""
    gpus_per_encoder: float = Field(default=1, gt=0)

    @model_validator(mode="after")
    def _sane(self) -> Cluster:
        if isinstance(self.encoders, int) and self.encoders < 1:
            raise ConfigError(f"cluster.encoders must be at least 1: {self.encoders}")
        if isinstance(self.encoders, PoolSize) and self.encoders.min > self.encoders.max:
            raise ConfigError(f"cluster.encoders: min {self.encoders.min} is above max {self.encoders.max}")
        return self


class Index(Section):
    """The ANN index."""

    recall_target: float = Field(default=0.95, gt=0, le=1)
    codec: Literal["auto", "float16", "sq8", "rabitq"] = "auto"
    nlist: Literal["auto"] | int = "auto"
    queries: str | None = None
    """A file of queries to measure recall with: JSONL of `{id, text}`, a path or a URI."""


class Limits(Section):
    """What refuses to be published (exit 3)."""

    max_quarantined_ratio: float = Field(default=0.01, ge=0, le=1)
    """Of documents; never refuses under 10 of them."""
    max_quarantined_files: int = Field(default=0, ge=0)
    max_deleted_ratio: float = Field(default=0.1, ge=0, le=1)
    """Of the documents of the snapshot before."""


class Config(Section):
    """Everything a job is told."""

    input: Input
    store: Store
    encoder: EncoderSettings = EncoderSettings()
    splits: SplitBounds = SplitBounds()
    cluster: Cluster = Cluster()
    index: Index = Index()
    limits: Limits = Limits()

    def redacted(self) -> dict[str, Any]:
        """As a JSON value without anything secret: for manifests, logs and reports."""
        value = self.model_dump(mode="json")
        for section in ("input", "store"):
            if value[section]["storage_options"]:
                value[section]["storage_options"] = dict.fromkeys(value[section]["storage_options"], "***")
            uri = value[section]["uri"]
            value[section]["uri"] = redact_uri(uri) if isinstance(uri, str) else [redact_uri(one) for one in uri]
        value["encoder"]["model"] = redact_uri(value["encoder"]["model"])
        return value

    def shard_fingerprint(self, keep_types: Mapping[str, str]) -> str:
        """16 hex digits over all that shapes a row, apart from the encoder (which has its own).

        `keep_types` are the Arrow types of the kept columns. Bounds of splits, cluster, limits,
        index, token budget, compute type, URIs and credentials shape no row and are left out.
        """
        shaping = {
            "row_format_version": ROW_FORMAT_VERSION,
            "input": {
                "format": self.input.format,
                "id": self.input.id,
                "text": self.input.text,
                "keep": list(keep_types.items()),  # the order is that of the shards' columns
                **({"csv": self.input.csv.model_dump(exclude_defaults=True)} if self.input.csv != Csv() else {}),
            },
            "store": {"dtype": self.store.dtype, "keep_text": self.store.keep_text},
        }
        return hashlib.blake2b(json.dumps(shaping, sort_keys=True).encode(), digest_size=8).hexdigest()


def redact_uri(uri: str) -> str:
    """The URI without user name and password; the latter may hold slashes, as AWS secrets do."""
    return re.sub(r"(?<=://)([^/@]*:[^@]*|[^/@]*)@", "***@", uri)
