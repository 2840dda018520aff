"""The embed job, from a config to a published snapshot; the whole of it on this page.

    prepare    find model, input and store; everything a user can get wrong ends here, before any work
    plan       which splits of which files are not recorded yet
    flow       read, encode, write them on Ray; each one done is a record
    publish    prove that nothing is missing, and put the manifest

Run again after whatever ended it, it goes on: records decide what is left, not memory of a run.
"""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import Config, redact_uri
from pipeline.errors import (
    ChangedError,
    ConfigError,
    EnvironmentFault,
    InputError,
    NotSupportedError,
    StorageFault,
    UsageError,
)
from pipeline.flow.rows import Work
from pipeline.flow.stages import DriverEnvironment, FlowContext
from pipeline.limits import refuse_deletions, refuse_over_limits
from pipeline.model import ModelDescription, describe_model, fetch_model
from pipeline.planning import KnownRecords, carried_files, left_to_do, without
from pipeline.signals import interruptible
from pipeline.snapshots.commit import Publication, publish
from pipeline.snapshots.journal import load_records
from pipeline.snapshots.lease import Lease, new_run_id
from pipeline.snapshots.manifest import SPLITS_SCHEMA, Manifest, latest, read_table
from pipeline.snapshots.reader import Snapshot
from pipeline.snapshots.records import Record
from pipeline.snapshots.store import check_store, open_store
from pipeline.splits import InputFile, Split, check_columns, columns_read, limit_splits, list_input, plan_files
from pipeline.uris import Storage, split_input_uri
from pipeline.write import MAX_PAGE_BYTES

if TYPE_CHECKING:
    from pipeline.flow.drive import Drive

log = logging.getLogger(__name__)

# A file that is rewritten while it is read is planned again this often before the run gives up.
_MAX_FLOWS = 3

_VERSIONED = ("vecmill", "ray", "torch", "transformers", "tokenizers", "pyarrow", "fsspec", "s3fs")


@dataclass(frozen=True)
class Corpus:
    """Where the input is."""

    source: Storage
    name: str | None
    """The one file to read, if the input is one."""
    format: str | None

    @property
    def root(self) -> str:
        """Its URI, as a store remembers it."""
        return self.source.full_uri(self.name) if self.name else self.source.uri

    def list(self) -> list[InputFile]:
        """The files as they are now."""
        try:
            return list_input(self.source, self.name, self.format)
        except FileNotFoundError as error:
            raise InputError(f"{error}; give input.uri a bucket that there is") from None


@dataclass(frozen=True)
class Plan:
    """What a run found: every file is carried, recorded, or has work left."""

    files: list[InputFile]
    keep: pa.Schema
    shard_fp: str
    carried: frozenset[str]
    """File ids that the parent snapshot lists whole."""
    recorded: list[Record]
    """Tilings of the files that are done and not carried."""
    work: list[Work]

    @property
    def file_ids(self) -> frozenset[str]:
        """The ids of all files that the snapshot will speak of."""
        return frozenset(file.file_id for file in self.files)


def embed(config: Config, *, limit: int | None = None, quiet: bool = True) -> dict[str, Any]:
    """Publish a snapshot of the corpus, or find that the current one is up to date.

    Args:
        config: what to embed, with what, to where.
        limit: only the first so many documents; only into a store without a full snapshot.
        quiet: keep Ray's own log off stderr.

    Returns:
        The outcome as `vecmill embed` prints it: snapshot_id, published, counts, seconds.

    Raises:
        VecmillError: see pipeline.errors for what each subclass means and its exit code.
    """
    started = time.monotonic()
    with interruptible():
        source, name = split_input_uri(config.input.uri, config.input.storage_options)
        corpus = Corpus(source, name, config.input.format)
        store = Storage(config.store.uri, config.store.storage_options)
        is_new = not check_store(store, corpus.root)
        files = corpus.list() if is_new else []
        run = _Run(config, limit, new_run_id(), corpus, _find_model(config), store, None, quiet)
        if is_new:
            # All that a config can get wrong shows itself now, before the store is claimed for this corpus.
            run.plan(files)
            open_store(store, corpus.root, create=True)
        with Lease(store, run.run_id) as lease:
            # Listed and looked up under the lease: a run that ended meanwhile is built on, not undone.
            outcome = replace(run, parent=latest(store)).to_end(lease)
    return outcome | {"seconds": round(time.monotonic() - started, 1)}


def _find_model(config: Config) -> ModelDescription:
    model = describe_model(fetch_model(config.encoder, config.input.storage_options), config.encoder)
    width = {"float16": 2, "float32": 4}[config.store.dtype]
    most = MAX_PAGE_BYTES // (model.dim * width)
    if config.splits.num_rows > most:
        raise ConfigError(
            f"splits.max_rows: {config.splits.num_rows} vectors of dim {model.dim} exceed 1 GiB; give at most {most}"
        )
    return model


@dataclass(frozen=True)
class _Run:
    """One run under its lease."""

    config: Config
    limit: int | None
    run_id: str
    corpus: Corpus
    model: ModelDescription
    store: Storage
    parent: Manifest | None
    quiet: bool

    @property
    def encoder_fp(self) -> str:
        return self.model.fingerprint(self.config.input.text)

    def to_end(self, lease: Lease) -> dict[str, Any]:
        """Plan, flow, publish; plans again where a file was rewritten in between."""
        files = self.corpus.list()
        figures: dict[str, Any] = {}
        changed: set[str] | None = None  # what the last flow found rewritten; None: there was none
        for _ in range(_MAX_FLOWS + 1):
            try:
                plan = self.plan(files)
            except ChangedError as error:
                log.warning("planned again: %s", error)
                files, changed = self.corpus.list(), set()
                continue
            if not plan.work:
                if self.parent is not None and self._is_current(plan, self.parent):
                    return self._unchanged(self.parent)
                self._refuse(plan)
                return self._outcome(self._publish(plan), published=True) | figures
            if changed is not None and not changed.intersection(item.split.file.uri for item in plan.work):
                raise _lost(plan.work)
            drive = self._flow(plan, lease)
            figures, changed = drive.figures, drive.changed_uris
            files = self._listed_again(files, changed)
        raise StorageFault(
            f"input files were rewritten while they were read, {_MAX_FLOWS} times in a row; "
            f"run again once {self.corpus.root} rests"
        )

    def _check_parent(self) -> None:
        if self.parent is None:
            return
        if self.parent.encoder_fp != self.encoder_fp:
            raise NotSupportedError(
                f"another encoder for a store that has a snapshot: {self.parent.encoder_fp} "
                f"({self.parent.encoder.get('model')}) before, {self.encoder_fp} ({self.config.encoder.model}) now; "
                "give another store.uri, or the encoder and input.text as they were"
            )
        if self.limit is not None and self.parent.limit is None:
            raise UsageError(
                f"--limit {self.limit} would replace the full snapshot {self.parent.snapshot_id} of {self.store.uri} "
                "by a part of it; give another store.uri"
            )

    def plan(self, files: list[InputFile]) -> Plan:
        """What is carried, what is recorded, what is left; a file that is carried is not opened.

        Raises:
            UsageError: the config does not go with the files, or with the snapshot that is there.
        """
        self._check_parent()
        config, source = self.config, self.corpus.source
        parent_keep = self._parent_keep()
        carried: frozenset[str] = frozenset()
        planned: list[Split] | None = None
        if self.limit is not None:
            planned = limit_splits(
                source, files, config.splits, self.limit, config.input.format, columns_read(config.input)
            )
            limited = {split.file.file_id for split in planned}
            files = [file for file in files if file.file_id in limited]
            keep = check_columns(source, files, config.input, parent_keep)
        elif parent_keep is not None:
            carried, keep = carried_files(self._parent_splits, files), parent_keep
        elif config.input.keep:
            # The types of kept columns are part of the shard fingerprint: without them no record can be looked up.
            planned, keep = plan_files(source, files, config.input, config.splits)
        else:
            keep = pa.schema([])
        shard_fp = config.shard_fingerprint(_type_names(keep))
        open_files = without(files, carried)
        known = self._known(shard_fp) if open_files else KnownRecords()
        if self.limit is not None:
            work = left_to_do(planned or (), known)
            recorded = [record for split in planned or () for record in known.covering(split) or ()]
            return Plan(files, keep, shard_fp, carried, recorded, work)
        done = {file.file_id: tiling for file in open_files if (tiling := known.tiling(file))}
        untiled = without(open_files, done)
        if planned is None:
            # A corpus that was read before is not judged anew by what the first of its new files lacks.
            known_keep = keep if parent_keep is not None or done else None
            planned, found = plan_files(source, untiled, config.input, config.splits, known_keep)
            _refuse_other_types(keep, found)
        work = left_to_do((split for split in planned if split.file.file_id not in done), known)
        return Plan(files, keep, shard_fp, carried, [record for tiling in done.values() for record in tiling], work)

    def _parent_keep(self) -> pa.Schema | None:
        """The kept columns of the parent, if its rows have the shape that this config gives; else None."""
        parent = self.parent
        if parent is None or tuple(parent.keep) != self.config.input.keep:
            return None
        if parent.shard_fp != self.config.shard_fingerprint(parent.keep):
            return None
        if not parent.keep:
            return pa.schema([])
        if parent.limit is not None:
            return None  # types found in a part of the corpus do not bind the whole
        schema = Snapshot(self.store, parent).schema
        return pa.schema([schema.field(name) for name in parent.keep])

    @cached_property
    def _parent_splits(self) -> pa.Table:
        if self.parent is None:
            return SPLITS_SCHEMA.empty_table()
        return read_table(self.store, self.parent.splits, SPLITS_SCHEMA)

    def _known(self, shard_fp: str) -> KnownRecords:
        records = load_records(self.store, self.encoder_fp, shard_fp, self._victims())
        attempts = {} if self.parent is None else Snapshot(self.store, self.parent).attempts()
        return KnownRecords(records, attempts)

    def _victims(self) -> frozenset[str]:
        return frozenset((self.parent.victims if self.parent else None) or ())

    def _flow(self, plan: Plan, lease: Lease) -> Drive:
        """Run the work that is left on Ray."""
        from pipeline.flow.drive import drive_flow  # Ray is slow to import, and often not needed

        context = FlowContext(
            config=self.config,
            run_id=self.run_id,
            model=self.model,
            encoder_fp=self.encoder_fp,
            shard_fp=plan.shard_fp,
            keep=plan.keep,
            input_storage=self.corpus.source,
            store_storage=self.store,
            environment=DriverEnvironment(os.environ),
        )
        log.info("%d splits of %d files to do; starting Ray", len(plan.work), len(plan.files))
        return drive_flow(context, plan.work, lease.update, quiet=self.quiet)

    def _listed_again(self, files: list[InputFile], changed: set[str]) -> list[InputFile]:
        """The files, with those that changed as they are now; only those, so that a busy input comes to an end."""
        if not changed:
            return files
        log.warning("planned again, rewritten while they were read: %s", ", ".join(sorted(changed)[:3]))
        now = {file.uri: file for file in self.corpus.list()}
        for file in files:
            if file.uri in changed and now.get(file.uri) == file:
                raise StorageFault(
                    f"{self.corpus.source.full_uri(file.uri)} is there as it was listed, but not where it was read; "
                    "put the input on object storage, or on a path that all nodes share"
                )
        return [now.get(file.uri, file) for file in files if file.uri not in changed or file.uri in now]

    def _is_current(self, plan: Plan, parent: Manifest) -> bool:
        """Whether publishing would give the parent again."""
        if self.limit is not None or parent.limit is not None:
            return self.limit == parent.limit and parent.shard_fp == plan.shard_fp and self._lists(parent, plan)
        listed = set(self._parent_splits["file_id"].to_pylist())
        return parent.shard_fp == plan.shard_fp and listed == plan.carried and not plan.recorded

    def _lists(self, parent: Manifest, plan: Plan) -> bool:
        return sorted(self._parent_splits["split_id"].to_pylist()) == sorted(
            record.split_id for record in plan.recorded
        )

    def _refuse(self, plan: Plan) -> None:
        """Raise LimitError where a limit refuses what would be published."""
        limits = self.config.limits
        refuse_over_limits(limits, plan.recorded, self._carried_splits(plan))
        if self.parent is not None and self.parent.limit is None:
            refuse_deletions(limits, self._parent_splits, plan.recorded, self._carried_splits(plan))

    def _carried_splits(self, plan: Plan) -> pa.Table:
        splits = self._parent_splits
        return splits.filter(pc.is_in(splits["file_id"], pa.array(sorted(plan.carried), pa.string())))

    def _publish(self, plan: Plan) -> Manifest:
        config = self.config
        return publish(
            self.store,
            Publication(
                run_id=self.run_id,
                parent=self.parent,
                files=plan.file_ids,
                records=plan.recorded,
                carried=plan.carried,
                encoder={
                    "model": redact_uri(config.encoder.model),
                    "revision": config.encoder.revision,
                    **self.model.spelled_out(config.input.text),
                },
                encoder_fp=self.encoder_fp,
                shard_fp=plan.shard_fp,
                keep=_type_names(plan.keep),
                config=config.redacted(),
                versions=_versions(),
                limit=self.limit,
            ),
        )

    def _unchanged(self, parent: Manifest) -> dict[str, Any]:
        """The outcome of a run that did nothing: whatever there is was there before."""
        outcome = self._outcome(parent, published=False)
        return outcome | {"embedded": 0, "reused": outcome["embedded"] + outcome["reused"], "deleted": 0}

    def _outcome(self, manifest: Manifest, *, published: bool) -> dict[str, Any]:
        return {
            "snapshot_id": manifest.snapshot_id,
            "published": published,
            **manifest.accounting.model_dump(),
            "run_id": self.run_id,
            "store_uri": redact_uri(self.store.uri),
        }


def _lost(work: list[Work]) -> EnvironmentFault:
    return EnvironmentFault(
        f"{len(work)} splits went into the flow and did not come out, the first of {work[0].split.file.uri}: their "
        "processes were killed, for memory or by a document; what is done is kept, the same command goes on"
    )


def _versions() -> dict[str, str]:
    """Of what shapes the rows; where only the source was shipped (`ray job submit`), Vecmill is not installed."""
    found = {}
    for name in _VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _type_names(keep: pa.Schema) -> dict[str, str]:
    return {field.name: str(field.type) for field in keep}


def _refuse_other_types(keep: pa.Schema, found: pa.Schema) -> None:
    for field in keep:
        other = found.field(field.name).type
        if other != field.type:
            raise InputError(
                f"the kept column {field.name} is {field.type} in the current snapshot and {other} in new files; "
                "cast it in the input, or give another store.uri"
            )
