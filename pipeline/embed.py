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
from collections.abc import Callable, Collection
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from pipeline.config import Config, redact_uri
from pipeline.errors import ChangedError, ConfigError, EnvironmentFault, StorageFault, VecmillError
from pipeline.flow.context import DriverEnvironment, FlowContext
from pipeline.flow.ledger import Ledger
from pipeline.flow.rows import Work
from pipeline.limits import LimitWatch, Totals, refuse_deletions, refuse_over_limits
from pipeline.logs import LogSettings, log_run
from pipeline.model import ModelDescription, describe_model, fetch_model
from pipeline.planning import Plan, Planner, type_names
from pipeline.signals import interruptible
from pipeline.snapshots.commit import Publication, publish
from pipeline.snapshots.lease import Lease, new_run_id
from pipeline.snapshots.manifest import Manifest, latest
from pipeline.snapshots.records import Record
from pipeline.snapshots.store import check_store, open_store
from pipeline.splits import Corpus, InputFile, Split
from pipeline.unique_ids import Changes, apply_judgement, judge_ids
from pipeline.uris import Storage
from pipeline.write import max_shard_rows

if TYPE_CHECKING:
    from pipeline.flow.drive import Drive, FlowSession

log = logging.getLogger(__name__)

# A file that is rewritten while it is read is planned again this often before the run gives up.
_MAX_REWRITTEN = 3

# Flows in a row that bring no record, and teach nothing about what kills them, before the run gives up.
_MAX_FRUITLESS = 3

# Ids are judged, what follows from it is done, and they are judged again; twice is what it takes.
_MAX_JUDGEMENTS = 5

_VERSIONED = ("vecmill", "ray", "torch", "transformers", "tokenizers", "pyarrow", "fsspec", "s3fs")


def embed(
    config: Config, *, limit: int | None = None, retry_quarantined: bool = False, quiet: bool = True
) -> dict[str, Any]:
    """Publish a snapshot of the corpus, or find that the current one is up to date.

    Args:
        config: what to embed, with what, to where.
        limit: only the first so many documents; only into a store without a full snapshot.
        retry_quarantined: try quarantined documents again, with the splits they are in.
        quiet: keep Ray's own log off stderr.

    Returns:
        The outcome as `vecmill embed` prints it: snapshot_id, published, counts, seconds.

    Raises:
        VecmillError: see pipeline.errors for what each subclass means and its exit code.
    """
    started = time.monotonic()
    with interruptible():
        corpus = Corpus.open(config.input)
        store = Storage(config.store.uri, config.store.storage_options)
        is_new = not check_store(store, corpus.root, corpus.read_uris)
        files = corpus.list() if is_new else []
        model = find_model(config)
        planner = Planner(config, limit, corpus.source, model.fingerprint(config.input.text), store, parent=None)
        if is_new:
            # All that a config can get wrong shows itself now, before the store is claimed for this corpus.
            with suppress(ChangedError):  # that plans again, under the lease
                planner.plan(files)
            open_store(store, corpus.root, corpus.read_uris, create=True)
        run_id = new_run_id()
        log_run(run_id)
        with Lease(store, run_id) as lease:
            # Listed and looked up under the lease: a run that ended meanwhile is built on, not undone.
            planner = replace(planner, parent=latest(store), retry=run_id if retry_quarantined else None)
            outcome = _Run(config, run_id, corpus, model, planner, quiet).to_end(lease)
    return outcome | {"seconds": round(time.monotonic() - started, 1)}


def find_model(config: Config) -> ModelDescription:
    """The config's model, fetched and described.

    Raises:
        ModelError: no such model, or not one that can be used.
        ConfigError: the vectors of a split would not fit a page.
    """
    model = describe_model(fetch_model(config.encoder, config.input.storage_options), config.encoder)
    most = max_shard_rows(model.dim, config.store.dtype)
    if config.splits.num_rows > most:
        raise ConfigError(
            f"splits.max_rows: {config.splits.num_rows} vectors of dim {model.dim} exceed 1 GiB; give at most {most}"
        )
    return model


@dataclass(frozen=True)
class _Run:
    """One run under its lease."""

    config: Config
    run_id: str
    corpus: Corpus
    model: ModelDescription
    planner: Planner
    quiet: bool

    def to_end(self, lease: Lease) -> dict[str, Any]:
        """Work off what is left, judge what there is then, publish."""
        files = self.corpus.list()
        figures: dict[str, Any] = {}
        changes = Changes()
        for _ in range(_MAX_JUDGEMENTS):
            files, plan, told = self._work_off(files, changes, lease)
            figures |= told
            parent = self.planner.parent
            if parent is not None and self.planner.is_current(plan, parent):
                return self._unchanged(parent)
            found = judge_ids(self.planner, plan)
            self._refuse(plan, num_more=found.num)
            if not found.rows and not found.revived:
                outcome = self._outcome(self._publish(plan), published=True)
                return outcome | figures | outcome  # of tokens both tell: the snapshot's are meant
            changes = apply_judgement(self.planner, plan, found, changes, self.run_id)
        raise VecmillError(f"ids are not unique after {_MAX_JUDGEMENTS} rounds. This is a bug.")

    def _work_off(
        self, files: list[InputFile], changes: Changes, lease: Lease
    ) -> tuple[list[InputFile], Plan, dict[str, Any]]:
        """Flows until nothing is left: again where files were rewritten in between, or splits lost with a process."""
        ledger = Ledger(self.planner.store, self.run_id)
        drive: Drive | None = None
        num_rewritten = num_fruitless = 0
        with ExitStack() as stack:
            session: FlowSession | None = None
            while True:
                if num_rewritten > _MAX_REWRITTEN:
                    raise StorageFault(
                        f"input files were rewritten while they were read, {_MAX_REWRITTEN} times in a row; "
                        f"run again once {self.corpus.root} rests"
                    )
                try:
                    plan = self.planner.plan(files, reopened=changes.reopened, redo=changes.redo)
                except ChangedError as error:
                    log.warning("planned again: %s", error)
                    files, drive, num_rewritten = self.corpus.list(), None, num_rewritten + 1
                    continue
                if not plan.work:
                    return files, plan, session.figures if session else {}
                if drive is not None and session is not None:
                    lost = [item.split for item in plan.work if _is_fresh(item.split, drive.stale_uris)]
                    learned = bool(lost) and self._learn(ledger, lost, session)
                    is_fruitless = bool(lost) and not learned and not drive.num_recorded
                    num_fruitless = num_fruitless + 1 if is_fruitless else 0
                    if num_fruitless >= _MAX_FRUITLESS:
                        raise _lost(lost)
                context = self._context(plan)
                session = session or self._connect(stack, context)
                drive = session.run(
                    context,
                    [_tried_next(item, ledger) for item in plan.work],
                    self._judge(plan),
                    lease.update,
                )
                num_rewritten = num_rewritten + 1 if drive.changed_uris else 0
                files = self._listed_again(files, drive.changed_uris)

    def _learn(self, ledger: Ledger, lost: list[Split], session: FlowSession) -> bool:
        log.warning(
            "%d splits were lost with their process or their node, the first of %s; they are tried again",
            len(lost),
            lost[0].file.uri,
        )
        return ledger.learn(lost, cache(session.answers))

    def _connect(self, stack: ExitStack, context: FlowContext) -> FlowSession:
        from pipeline.flow.drive import flow_session  # Ray is slow to import, and often not needed

        log.info("starting Ray")
        return stack.enter_context(flow_session(context, quiet=self.quiet))

    def _context(self, plan: Plan) -> FlowContext:
        log.info("%d splits of %d files to do", len(plan.work), len(plan.files))
        if plan.num_repacked:
            log.info(
                "%d documents of files that did not change are embedded again: small files share a shard, and others "
                "of it changed or are gone",
                plan.num_repacked,
            )
        return FlowContext(
            config=self.config,
            run_id=self.run_id,
            model=self.model,
            encoder_fp=self.planner.encoder_fp,
            shard_fp=plan.shard_fp,
            keep=plan.keep,
            input_storage=self.corpus.source,
            store_storage=self.planner.store,
            environment=DriverEnvironment(os.environ),
            log_settings=LogSettings.current(self.run_id),
        )

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

    def _judge(self, plan: Plan) -> Callable[[Record], None]:
        """Raises LimitError once nothing that comes can bring the snapshot back under the limits."""
        config = self.config
        settled = Totals.of(plan.recorded, self.planner.carried_splits(plan))
        watch = LimitWatch(config.limits, settled, [item.split for item in plan.work], config.input)

        def judge(record: Record) -> None:
            watch.add(record)
            watch.check()

        return judge

    def _refuse(self, plan: Plan, num_more: int) -> None:
        """Raise LimitError where a limit refuses what would be published; so many more would be quarantined."""
        limits, planner = self.config.limits, self.planner
        carried_splits = planner.carried_splits(plan)
        refuse_over_limits(limits, plan.recorded, carried_splits, num_more)
        if planner.parent is not None and planner.parent.limit is None:
            refuse_deletions(limits, planner.parent_splits, plan.recorded, carried_splits)

    def _publish(self, plan: Plan) -> Manifest:
        config = self.config
        return publish(
            self.planner.store,
            Publication(
                run_id=self.run_id,
                parent=self.planner.parent,
                files=plan.file_ids,
                records=plan.recorded,
                carried=plan.carried,
                encoder={
                    "model": redact_uri(config.encoder.model),
                    "revision": config.encoder.revision,
                    **self.model.spelled_out(config.input.text),
                },
                encoder_fp=self.planner.encoder_fp,
                shard_fp=plan.shard_fp,
                keep=type_names(plan.keep),
                config=config.redacted(),
                versions=_versions(),
                limit=self.planner.limit,
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
            "store_uri": redact_uri(self.planner.store.uri),
        }


def _is_fresh(split: Split, stale_uris: Collection[str]) -> bool:
    """Whether it is of no file of a split that was given up because the input changed."""
    return all(file.uri not in stale_uris for file in split.files)


def _tried_next(item: Work, ledger: Ledger) -> Work:
    trial = ledger.trial(item.split)
    return item if trial is item.trial else replace(item, trial=trial)  # nearly always the first


def _lost(lost: list[Split]) -> EnvironmentFault:
    return EnvironmentFault(
        f"{len(lost)} splits were lost {_MAX_FRUITLESS} times in a row with nothing done in between, the first of "
        f"{lost[0].file.uri}: their processes or nodes were killed; what is done is kept, the same command goes on"
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
