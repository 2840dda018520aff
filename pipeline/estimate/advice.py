"""What would save money, seen before it is spent: each a sentence with the way out."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.config import redact_uri
from pipeline.estimate import Forecast

_MANY_TRUNCATED = 0.5
_MANY_THROWN = 0.2
_FEW_BYTES = 64 * 2**10
_MANY_FILES = 1000
# Under this a store is small whatever its type.
_SMALL_STORE_BYTES = 2**30
_MANY_EQUAL = 0.01
_VERY_LONG_TOKENS = 50_000

_SINGULAR = {"empty_text": "are empty after the template", "missing_id": "have no id"}


def advice(found: Forecast) -> list[str]:
    """Sentences, the most expensive first; none where there is nothing to say."""
    return [*_overlong(found), *_repeated(found), *_bad(found), *_files(found), *_dtype(found)]


def _overlong(found: Forecast) -> Iterator[str]:
    texts, settings = found.texts, found.config.encoder
    if texts is None or not texts.num_documents:
        return
    if texts.truncated_ratio >= _MANY_TRUNCATED or texts.thrown_ratio >= _MANY_THROWN:
        yield (
            f"{texts.truncated_ratio:.0%} of the texts are longer than {found.max_tokens} tokens, and "
            f"{texts.thrown_ratio:.0%} of all tokens are thrown away: encoder.overlong=chunk embeds all of them; "
            "encoder.max_tokens sets another limit, up to the model's own"
        )
    num_long = int((texts.document_tokens >= _VERY_LONG_TOKENS).sum())
    if num_long and settings.overlong == "chunk":
        longest = int(texts.document_tokens.max())
        yield (
            f"{num_long} of {texts.num_documents} sampled texts have {_VERY_LONG_TOKENS:,} tokens or more, the longest "
            f"{longest:,}: with overlong=chunk each makes hundreds of vectors; overlong=truncate makes one"
        )


def _repeated(found: Forecast) -> Iterator[str]:
    sample, input = found.sample, found.config.input
    if sample is None or not sample.documents.num_rows:
        return
    num = sample.documents.num_rows
    if input.id is not None and found.num_equal_ids:
        yield (
            f"{found.num_equal_ids:,} of {num:,} documents read have an id ({input.id}) that an earlier one has: all "
            "but the first are encoded and then quarantined; make input.id unique, or leave it out"
        )
    if found.num_equal_texts > _MANY_EQUAL * num:
        yield (
            f"{found.num_equal_texts:,} of {num:,} documents read have the text of an earlier one, and "
            "each is encoded: take doubles out of the input first"
        )


def _bad(found: Forecast) -> Iterator[str]:
    sample = found.sample
    for reason, num in sample.reasons.items() if sample is not None else ():
        told = _SINGULAR.get(reason, f"would be quarantined ({reason})")
        limit = found.config.limits.max_quarantined_ratio
        share = num / max(1, sample.num_read if sample is not None else 0)
        over = f"; over limits.max_quarantined_ratio ({limit:.2%}) nothing is published" if share > limit else ""
        yield f"{num:,} documents read ({share:.2%}) {told}: mend the input, or check input.text and input.id{over}"


def _files(found: Forecast) -> Iterator[str]:
    listed = found.listed
    num = listed.num_files - listed.num_files_done
    mean_bytes = listed.num_bytes_left / num if num else 0
    if num >= _MANY_FILES and mean_bytes < _FEW_BYTES:
        yield (
            f"{num:,} files of {mean_bytes / 1024:.3g} KiB on average, in {listed.num_splits:,} splits: each file "
            "costs requests of its own; merge them into larger ones, best Parquet"
        )


def _dtype(found: Forecast) -> Iterator[str]:
    store = found.config.store
    num_bytes = found.num_sequences.value * found.dim * 4
    if store.dtype == "float32" and num_bytes >= _SMALL_STORE_BYTES:
        yield (
            f"store.dtype=float32 takes {num_bytes / 1e9:.1f} GB in {redact_uri(store.uri)}; float16 takes half, and "
            "on unit vectors the loss is below what a search can see"
        )
