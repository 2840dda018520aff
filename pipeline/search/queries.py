"""Queries to vectors: by the same model as the documents, with its query prompt.

An encoder whose fingerprint is not the snapshot's is refused, since its vectors would compare to nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.config import EncoderSettings
from pipeline.errors import StoreError, UsageError
from pipeline.model import describe_model, encoder_fingerprint, fetch_model
from pipeline.snapshots.manifest import Manifest
from pipeline.tokens import load_tokenizer

# Of the norm of a query: an encoder keeps it within 1e-3.
_MAX_NORM_ERROR = 1e-2


def check_queries(queries: npt.NDArray[np.floating], k: int, dim: int, holder: str) -> npt.NDArray[np.float32]:
    """The queries (Q, D) as they are searched with; `holder` is what holds vectors of `dim`, for the eye.

    Raises:
        UsageError: k below 1, another dim, or no unit vectors: their scores would be no cosines.
    """
    if k < 1:
        raise UsageError(f"k must be at least 1: {k}")
    if not np.issubdtype(queries.dtype, np.floating):
        raise UsageError(f"queries are of {queries.dtype}; they are unit vectors of floats, or texts")
    if queries.ndim != 2 or queries.shape[1] != dim:
        raise UsageError(f"queries have shape {queries.shape}, {holder} holds vectors of dim {dim}")
    checked = np.ascontiguousarray(queries, np.float32)
    norms = np.linalg.norm(checked, axis=1)
    bad = np.flatnonzero(~(np.abs(norms - 1) < _MAX_NORM_ERROR))
    if len(bad):
        raise UsageError(
            f"query {bad[0]} has norm {norms[bad[0]]:.4g}; queries are unit vectors, as the snapshot's encoder makes "
            "them"
        )
    return checked


class QueryEncoder:
    """The snapshot's encoder, for queries.

    Args:
        manifest: of the snapshot that will be searched.
        settings: the encoder section of a config; None: as the manifest tells.
        template: `input.text` of the same config.
        storage_options: for a model in object storage.

    Raises:
        ModelError: the model is not to be had.
        StoreError: the model is another than the snapshot's.
    """

    def __init__(
        self,
        manifest: Manifest,
        settings: EncoderSettings | None = None,
        template: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        from pipeline.encoder import Encoder  # torch: two seconds that a mistake in the command need not wait for

        settings = settings or EncoderSettings.model_validate(manifest.config["encoder"])
        template = manifest.config["input"]["text"] if template is None else template
        path = fetch_model(settings, storage_options)
        model = describe_model(path, settings)
        # How documents are cut does not touch queries.
        cut = {key: manifest.encoder[key] for key in ("overlong", "chunk") if key in manifest.encoder}
        spelled_out = {key: value for key, value in model.spelled_out(template).items() if key != "chunk"}
        fingerprint = encoder_fingerprint(spelled_out | cut)
        if fingerprint != manifest.encoder_fp:
            raise StoreError(
                f"snapshot {manifest.snapshot_id} was made by the encoder {manifest.encoder_fp} "
                f"({manifest.encoder.get('model')}), this one is {fingerprint} ({settings.model}): model, pooling, "
                "prompt, max_tokens, truncate_dim or input.text differ; search with the config that embedded it, or "
                "embed again into another store"
            )
        self._tokenizer = load_tokenizer(path, model)
        self._encoder = Encoder(path, model, compute=settings.compute, token_budget=settings.token_budget)

    def encode(self, queries: Sequence[str]) -> npt.NDArray[np.float32]:
        """Unit vectors (Q, D).

        Raises:
            UsageError: a query is empty, or has no vector.
        """
        for query in queries:
            if not query.strip():
                raise UsageError(f"a query is empty: {query!r}")
        encoded = self._encoder.encode(self._tokenizer.query_ids(queries), queries=True)
        bad = [*encoded.invalid, *encoded.failed]
        if bad:
            raise UsageError(f"a query cannot be encoded: {queries[bad[0]][:80]!r}")
        return encoded.vectors
