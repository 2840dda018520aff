"""What a run would do, take and cost, from listings, a sample and ten seconds of the encoder; writes nothing.

    ratios   estimates with their bounds
    sample   documents of all parts of the input, and how many there are
    texts    their tokens
    probe    what the encoder takes for them
    advice   warnings that save money

What is carried over from the snapshot before, or recorded, is left out of all that costs time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import Cluster, Config, PoolSize
from pipeline.embed import find_model
from pipeline.estimate.probe import Probe, probe_encoder
from pipeline.estimate.ratios import Estimate
from pipeline.estimate.sample import Sample, draw_sample
from pipeline.estimate.texts import Texts, measure_texts
from pipeline.flow.cluster import plan_pool
from pipeline.flow.rows import Work
from pipeline.limits import Totals
from pipeline.model import ModelDescription, fetch_model
from pipeline.parallel import num_cores
from pipeline.planning import Planner
from pipeline.signals import interruptible
from pipeline.snapshots.manifest import latest
from pipeline.snapshots.store import check_store
from pipeline.splits import Corpus
from pipeline.tokens import load_tokenizer
from pipeline.uris import Storage

__all__ = ["Estimate", "Forecast", "Listed", "Seconds", "forecast"]

# Starting Ray in place and its workers, listing, planning and publishing, on two cores at rest. Loading the model is
# measured each time.
_START_S = 12.0
# What a split takes beyond reading, tokenizing and its forward passes, and a document (jobs/benchmark.md).
_SPLIT_S = 0.07
_DOCUMENT_S = 0.00005
_READ_S = 0.00005


@dataclass(frozen=True)
class Listed:
    """What planning found, without a sample.

    Attributes:
        num_files, num_bytes: of the input.
        num_files_done: carried over, or recorded to their end.
        num_splits: planned, and left to do.
        num_bytes_left: of the files with something left.
        num_documents_done: of carried and recorded files.
    """

    num_files: int
    num_bytes: int
    num_files_done: int
    num_splits: int
    num_bytes_left: int
    num_documents_done: int


@dataclass(frozen=True)
class Seconds:
    """What the time goes into; of the whole run.

    Attributes:
        num_encoders: that share the encoding.
        start_s: Ray, and loading the model.
        encode_s: of one encoder for all, divided among them.
        others_s: reading, tokenizing, writing.
        total: of the run.
        encoder_s: of one encoder for all; what GPUs are paid for.
    """

    num_encoders: int
    start_s: float
    encode_s: Estimate
    others_s: float
    total: Estimate
    encoder_s: Estimate


@dataclass(frozen=True)
class Forecast:
    """All that is known of a run before it starts; figures of documents and tokens are of what is left to do.

    Attributes:
        sample, texts, probe, seconds: None where nothing is left, or nothing that has a token.
        device, compute: where the probe ran, and in which type.
    """

    config: Config
    listed: Listed
    dim: int
    max_tokens: int
    sample: Sample | None = None
    texts: Texts | None = None
    probe: Probe | None = None
    seconds: Seconds | None = None
    device: str = ""
    compute: str = ""

    @property
    def num_documents(self) -> Estimate:
        """Left to do, quarantined ones included."""
        return self.sample.num_documents if self.sample else Estimate(0.0)

    @property
    def num_embedded(self) -> Estimate:
        """Left to do without those that the reader quarantines."""
        if self.sample is None or not self.sample.num_read:
            return Estimate(0.0)
        share: float = self.sample.documents.num_rows / self.sample.num_read
        return self.num_documents * share

    @property
    def num_tokens(self) -> Estimate:
        """That the encoder sees, special ones included."""
        return self.num_embedded * self.texts.num_tokens if self.texts else Estimate(0.0)

    @property
    def num_sequences(self) -> Estimate:
        """Documents, or their chunks."""
        return self.num_embedded * self.texts.num_sequences if self.texts else Estimate(0.0)

    @property
    def num_equal_texts(self) -> int:
        """Documents of the sample whose text an earlier one has."""
        return _num_repeated(self.sample, "content_hash")

    @property
    def num_equal_ids(self) -> int:
        """Documents of the sample whose id an earlier one has."""
        return _num_repeated(self.sample, "doc_id")

    @property
    def num_shards(self) -> int:
        """Splits as the reader will cut them: planned ones, or more where they hold more rows than one may."""
        return max(self.listed.num_splits, math.ceil(self.num_documents.value / self.config.splits.num_rows))


def forecast(config: Config, num_encoders: int | None = None) -> Forecast:
    """Find out what a run would do; nothing is written but caches of this machine.

    Args:
        config: as `embed` takes it; wrong paths, columns and models are refused alike.
        num_encoders: that will work; None: what the config asks for, `auto` being what this machine holds.

    Raises:
        VecmillError: as `pipeline.embed.embed` before it starts.
    """
    with interruptible():
        corpus = Corpus.open(config.input)
        store = Storage(config.store.uri, config.store.storage_options)
        has_store = check_store(store, corpus.root, corpus.read_uris)
        model = find_model(config)
        parent = latest(store) if has_store else None
        planner = Planner(config, None, corpus.source, model.fingerprint(config.input.text), store, parent)
        plan = planner.plan(corpus.list())
        left = {file.file_id: file for item in plan.work for file in item.split.files}
        listed = Listed(
            num_files=len(plan.files),
            num_bytes=sum(file.size for file in plan.files),
            num_files_done=len(plan.files) - len(left),
            num_splits=len(plan.work),
            num_bytes_left=sum(file.size for file in left.values()),
            num_documents_done=Totals.of(plan.recorded, planner.carried_splits(plan)).num_documents,
        )
        bare = Forecast(config, listed, model.dim, model.max_tokens)
        return _sampled(bare, corpus, model, plan.work, plan.keep, num_encoders) if plan.work else bare


def _sampled(
    bare: Forecast,
    corpus: Corpus,
    model: ModelDescription,
    work: Sequence[Work],
    keep: pa.Schema,
    num_encoders: int | None,
) -> Forecast:
    config = bare.config
    sample = draw_sample(corpus.source, work, config, keep)
    path = fetch_model(config.encoder, config.input.storage_options)
    texts = measure_texts(sample, load_tokenizer(path, model), model.max_tokens)
    found = Forecast(config, bare.listed, bare.dim, bare.max_tokens, sample, texts)
    if not len(texts.lengths):
        return found
    # As many threads as an encoder gets here: the config's own pool may be that of a cluster.
    pool = plan_pool(Cluster(), [{"CPU": max(4, num_cores())}])
    started = time.monotonic()
    from pipeline.encoder import Encoder  # torch: part of what a worker waits for

    encoder = Encoder(
        path,
        model,
        compute=config.encoder.compute,
        token_budget=config.encoder.token_budget,
        num_threads=pool.num_threads,
    )
    load_s = time.monotonic() - started
    window = max(1, round(found.num_sequences.value / found.num_shards))
    probe = probe_encoder(encoder, texts.input_ids, window)
    on_gpu = encoder.device.type == "cuda"
    num = num_encoders or _num_encoders(config.cluster, 1 if on_gpu else pool.max_size)
    seconds = _seconds(found, probe, num, _START_S + load_s, on_gpu=on_gpu)
    return replace(found, probe=probe, seconds=seconds, device=str(encoder.device), compute=encoder.compute)


def _num_encoders(cluster: Cluster, auto: int) -> int:
    match cluster.encoders:
        case "auto":
            return auto
        case PoolSize(max=high):
            return high
        case int(size):
            return size


def _seconds(found: Forecast, probe: Probe, num_encoders: int, start_s: float, *, on_gpu: bool) -> Seconds:
    """Of all that is left: the stages side by side on a GPU, sharing the cores on CPUs."""
    assert found.sample is not None
    assert found.texts is not None
    encoder_s = found.num_sequences * probe.seconds_per_sequence
    encode_s = encoder_s * (1 / num_encoders)
    read_s = found.sample.read_s / max(1, found.sample.num_read)
    if not found.sample.is_whole:
        read_s = min(read_s, _READ_S)  # blocks are read at a loss: what is before them is skipped
    per_document = read_s + found.texts.tokenize_s + _DOCUMENT_S
    others_s = (found.num_documents.value * per_document + found.num_shards * _SPLIT_S) / num_encoders
    if on_gpu:
        first_s = others_s * num_encoders / found.num_shards  # nothing is encoded before a split is read
        work = encode_s + Estimate(first_s) if encode_s.value >= others_s else Estimate(others_s)
    else:
        work = encode_s + Estimate(others_s)
    return Seconds(num_encoders, start_s, encode_s, others_s, work + Estimate(start_s), encoder_s)


def _num_repeated(sample: Sample | None, name: str) -> int:
    if sample is None:
        return 0
    num_distinct: int = pc.count_distinct(sample.documents[name]).as_py()
    return int(sample.documents.num_rows) - num_distinct
