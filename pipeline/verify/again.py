"""A sample of rows, encoded again from the input: whether the vectors are those of their texts.

The sample is seeded, and spread over splits; of each of those the range is read again as `embed`
read it. A file that was rewritten since tells nothing about what was embedded: it is named as not
checked, which is no fault.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config import Config
from pipeline.errors import ChangedError, InputError, StoreError
from pipeline.model import describe_model, fetch_model
from pipeline.read import read_split
from pipeline.snapshots.reader import Snapshot
from pipeline.snapshots.store import open_store
from pipeline.splits import Corpus, InputFile, Split, file_format, is_streamed
from pipeline.tokens import SequenceTokenizer, load_tokenizer, tokenize

if TYPE_CHECKING:
    from pipeline.encoder import Encoder

MIN_COSINE = 0.999
"""What promises 5 and 6 give for any compute type and machine."""

# A range is read whole for however few of its rows.
_MAX_SPLITS = 20

_STORED = ["doc_id", "content_hash", "chunk_index", "vector"]

Row = dict[str, Any]


@dataclass
class Again:
    """What came of it."""

    findings: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    """Of what could not be read again, and why."""
    rows: int = 0
    min_cosine: float = 1.0
    """Between stored and new vectors."""


def encode_again(snapshot: Snapshot, config: Config, *, num_rows: int = 200, seed: int = 0) -> Again:
    """Encode about `num_rows` rows of the snapshot again.

    Raises:
        StoreError: the store or the snapshot is not of this config.
        EnvironmentFault: storage failed.
    """
    return _Again(snapshot, config).of(_sample(snapshot, num_rows, seed))


def _sample(snapshot: Snapshot, num_rows: int, seed: int) -> list[tuple[list[Row], Row, list[int]]]:
    """(split, shard, rows of it), by input file and range; a split is its rows of the table, of a pack by file."""
    rng = np.random.default_rng(seed)
    shards = {row["ordinal"]: row for row in snapshot.shards.to_pylist() if row["num_rows"]}
    ordinals = snapshot.splits["ordinal"].to_numpy()
    filled = np.flatnonzero(np.isin(ordinals, np.array(list(shards), np.int32)))
    filled = np.sort(filled[np.unique(ordinals[filled], return_index=True)[1]])  # of packs their first files
    chosen = np.sort(rng.choice(filled, min(_MAX_SPLITS, len(filled)), replace=False))
    sample = []
    for ordinal in ordinals[chosen].tolist():
        shard = shards[ordinal]
        num = min(shard["num_rows"], -(-num_rows // len(chosen)))
        files = snapshot.splits.filter(pc.equal(snapshot.splits["ordinal"], ordinal)).to_pylist()
        sample.append((files, shard, sorted(rng.choice(shard["num_rows"], num, replace=False).tolist())))
    return sample


class _Again:
    def __init__(self, snapshot: Snapshot, config: Config) -> None:
        from pipeline.encoder import Encoder  # torch: two seconds that a mistake in the config need not wait for

        self._snapshot, self._config = snapshot, config
        corpus = Corpus.open(config.input)
        self._source = corpus.source
        open_store(snapshot.storage, corpus.root, corpus.read_uris, create=False)
        manifest = snapshot.manifest
        path = fetch_model(config.encoder, config.input.storage_options)
        model = describe_model(path, config.encoder)
        found = (model.fingerprint(config.input.text), config.shard_fingerprint(manifest.keep))
        if found != (manifest.encoder_fp, manifest.shard_fp):
            raise StoreError(
                f"snapshot {manifest.snapshot_id} was made with the fingerprints {manifest.encoder_fp} (encoder) and "
                f"{manifest.shard_fp} (rows), this config has {found[0]} and {found[1]}; give --deep the config that "
                "embedded it"
            )
        self._files = _listed(corpus)
        self._tokenizer: SequenceTokenizer = load_tokenizer(path, model)
        # What every compute type is held against (promise 5), whichever made the shard.
        budget = config.encoder.token_budget
        self._encoder: Encoder = Encoder(path, model, compute="float32", token_budget=budget)
        self._again = Again()

    def of(self, sample: list[tuple[list[Row], Row, list[int]]]) -> Again:
        for files, shard, rows in sample:
            for split, part in self._by_file(files, shard["file"], rows):
                self._check(split, shard["file"], part)
        return self._again

    def _by_file(self, files: list[Row], name: str, rows: list[int]) -> list[tuple[Row, list[int]]]:
        """Rows of a shard by the input file that they are of."""
        if len(files) == 1:
            return [(files[0], rows)]
        try:
            with self._snapshot.storage.open(name) as source:
                chunks = pq.ParquetFile(source, pre_buffer=True).read(columns=["chunk_index"])["chunk_index"].to_numpy()
        except (pa.ArrowException, OSError):
            self._again.unchecked.append(f"{name} cannot be read")
            return []
        ends = np.cumsum([file["num_documents"] - file["num_quarantined"] for file in files])
        of_row = np.searchsorted(ends, (np.cumsum(chunks == 0) - 1)[rows], side="right").clip(max=len(files) - 1)
        return [
            (files[index], [row for row, of in zip(rows, of_row, strict=True) if of == index])
            for index in np.unique(of_row).tolist()
        ]

    def _check(self, split: Row, name: str, rows: list[int]) -> None:
        file = self._files.get(split["file_uri"])
        try:
            if file is None or file.file_id != split["file_id"]:
                raise ChangedError("")
            self._compare(split, name, rows, file)
        except ChangedError:
            self._again.unchecked.append(f"{split['file_uri']} cannot be checked: changed since it was embedded")

    def _compare(self, split: Row, name: str, rows: list[int], file: InputFile) -> None:
        try:
            with self._snapshot.storage.open(name) as source:
                stored = pq.ParquetFile(source, pre_buffer=True).read(columns=_STORED).take(pa.array(rows))
        except (pa.ArrowException, OSError):
            self._again.unchecked.append(f"{name} cannot be read")
            return
        documents = self._documents(split, file, stored["doc_id"])
        first: dict[str, int] = {}
        for position, doc_id in enumerate(documents["doc_id"].to_pylist()):
            first.setdefault(doc_id, position)  # a later row with the same id is in quarantine
        places = [first.get(doc_id) for doc_id in stored["doc_id"].to_pylist()]
        texts = documents["content_hash"].to_pylist()
        for row, place, stored_row in zip(rows, places, stored.select(_STORED[:2]).to_pylist(), strict=True):
            if place is None:
                self._again.findings.append(f"{name}: row {row}, {stored_row['doc_id']}, is not in {file.uri}")
            elif texts[place] != stored_row["content_hash"]:
                self._again.findings.append(f"{name}: row {row}, {stored_row['doc_id']}, is of another text")
        sound = [position for position, place in enumerate(places) if place is not None]
        wanted = documents.take(pa.array([places[position] for position in sound], pa.int64()))
        self._compare_vectors(name, [rows[position] for position in sound], stored.take(sound), wanted)

    def _compare_vectors(self, name: str, rows: list[int], stored: pa.Table, documents: pa.Table) -> None:
        """Of each row its document, which has all its chunks again."""
        if not rows:
            return
        tokenized = tokenize(documents, self._tokenizer, input_file="")
        if tokenized.quarantine.num_rows:
            self._again.findings.append(f"{name}: {tokenized.quarantine.num_rows} texts cannot be tokenized again")
            return
        first = np.flatnonzero(tokenized.sequences["chunk_index"].to_numpy() == 0)
        chunks, num_chunks = stored["chunk_index"].to_numpy(), tokenized.sequences["num_chunks"].to_numpy()[first]
        for place in np.flatnonzero(chunks >= num_chunks):
            self._again.findings.append(
                f"{name}: row {rows[place]} is chunk {chunks[place]}, its text makes {num_chunks[place]}"
            )
        sequences = tokenized.sequences.take(pa.array(first + np.minimum(chunks, num_chunks - 1)))
        vectors = self._encoder.encode(sequences["input_ids"]).vectors  # (N, D)
        found = np.asarray(stored["vector"].combine_chunks().flatten()).reshape(vectors.shape).astype(np.float32)
        cosines = (found * vectors).sum(1) / np.maximum(np.linalg.norm(found, axis=1), 1e-9)
        self._again.rows += len(rows)
        self._again.min_cosine = min(self._again.min_cosine, float(cosines.min()))
        for place in np.flatnonzero(~(cosines >= MIN_COSINE)):
            self._again.findings.append(
                f"{name}: row {rows[place]} has cosine {cosines[place]:.4f} to its text encoded again; {MIN_COSINE} is "
                "the least"
            )

    def _documents(self, split: Row, file: InputFile, ids: pa.ChunkedArray) -> pa.Table:
        """The documents of the split's range that have these ids, in order."""
        schema, manifest = self._snapshot.schema, self._snapshot.manifest
        keep = pa.schema([schema.field(name) for name in manifest.keep])
        found = []
        for documents in self._read(split, file, keep):
            in_range = pc.and_(
                pc.greater_equal(documents["row"], split["begin"]), pc.less(documents["row"], split["end"])
            )
            found.append(documents.filter(pc.and_(in_range, pc.is_in(documents["doc_id"], ids.combine_chunks()))))
        return pa.concat_tables(found)

    def _read(self, split: Row, file: InputFile, keep: pa.Schema) -> Iterator[pa.Table]:
        config = self._config
        kind = file_format(file.uri, config.input.format)
        assert kind is not None, "it was listed"
        format, compression = kind
        planned = Split(file, format, compression, split["begin"], split["end"], split["last"])
        if is_streamed(format, compression):
            planned = Split(file, format, compression, 0, None, None)
        for piece in read_split(self._source, planned, config.input, keep, config.splits):
            if piece.documents is not None:
                yield piece.documents
            if piece.split.begin >= split["end"] > 0:
                return


def _listed(corpus: Corpus) -> dict[str, InputFile]:
    try:
        return {file.uri: file for file in corpus.list()}
    except (InputError, ChangedError):
        return {}
