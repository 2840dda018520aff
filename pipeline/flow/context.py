"""What the stages of a flow share: config, model, storages, and the environment of the driver."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from pipeline.config import Config
from pipeline.errors import ChangedError, VecmillError
from pipeline.flow.ledger import FIRST_TRIAL, Trial
from pipeline.flow.rows import SplitReport
from pipeline.logs import LogSettings
from pipeline.model import ModelDescription
from pipeline.schema import QUARANTINE_SCHEMA, Reason, Stage, encoded_schema, sequence_schema
from pipeline.splits import Split
from pipeline.uris import Storage

log = logging.getLogger(__name__)


class DriverEnvironment:
    """What the driver's environment says of object storage and the model hub, for the workers of other nodes.

    It travels inside the pickled stages and not in Ray's runtime_env, which Ray shows on its dashboard; and it is
    neither a dataclass nor a mapping, because Ray Data writes those out, field by field, into its metadata.
    """

    _CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")
    _HUB = ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE")

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._values = {
            name: value for name, value in environment.items() if name.startswith("AWS_") or name in self._HUB
        }

    def __repr__(self) -> str:
        return "DriverEnvironment(***)"

    def apply(self) -> None:
        """Set what this process has no setting of. Credentials go together: half of two pairs opens nothing."""
        has_own = any(name in os.environ for name in self._CREDENTIALS)
        for name, value in self._values.items():
            if not (has_own and name in self._CREDENTIALS):
                os.environ.setdefault(name, value)


@dataclass(frozen=True)
class FlowContext:
    """All that the stages of one run share; pickled once to each worker."""

    config: Config
    run_id: str
    model: ModelDescription
    encoder_fp: str
    shard_fp: str
    keep: pa.Schema
    """The kept columns with their types."""
    input_storage: Storage
    store_storage: Storage
    environment: DriverEnvironment = field(default_factory=lambda: DriverEnvironment({}))
    log_settings: LogSettings | None = None
    """How workers log; None leaves it as it is."""

    @property
    def sequence_schema(self) -> pa.Schema:
        """Of rows between read and encode."""
        return sequence_schema(self.keep, with_text=self.config.store.keep_text or self.config.store.quarantine_text)

    @property
    def encoded_schema(self) -> pa.Schema:
        """Of rows between encode and write."""
        return encoded_schema(self.sequence_schema, self.model.dim)

    def quarantined(
        self, split: Split, rows: pa.Table, stage: Stage, faults: Mapping[int, tuple[Reason, str]]
    ) -> pa.Table:
        """Documents or sequences as rows of QUARANTINE_SCHEMA; `faults` are reason and message by index."""
        if not faults:
            return QUARANTINE_SCHEMA.empty_table()
        chosen = rows.take(pa.array(sorted(faults), pa.int64()))
        num_rows = chosen.num_rows
        columns = {
            "doc_id": chosen["doc_id"],
            "input_file": [split.file.uri] * num_rows,
            "row": chosen["row"],
            "content_hash": chosen["content_hash"],
            "stage": [stage] * num_rows,
            "reason": [faults[index][0] for index in sorted(faults)],
            "message": [faults[index][1] for index in sorted(faults)],
            "text": chosen["text"] if self.config.store.quarantine_text else pa.nulls(num_rows, pa.string()),
        }
        return pa.table(columns).cast(QUARANTINE_SCHEMA)

    def enter_process(self) -> None:
        """Make a worker's environment the driver's, where the worker has no setting of its own."""
        self.environment.apply()
        if self.log_settings is not None:
            self.log_settings.apply()


def current_node_id() -> str:
    """Of the Ray node that this process runs on; empty outside Ray."""
    ray = sys.modules.get("ray")
    return str(ray.get_runtime_context().get_node_id()) if ray is not None and ray.is_initialized() else ""


def failure(error: Exception, what: str, trial: Trial = FIRST_TRIAL) -> SplitReport:
    """The report of a split that an exception ended; `what` was being done."""
    if isinstance(error, VecmillError):
        return SplitReport(
            status="failed",
            trial=trial,
            error=str(error),
            exit_code=error.exit_code,
            changed=isinstance(error, ChangedError),
            changed_uri=(isinstance(error, ChangedError) and error.file_uri) or "",
        )
    log.exception("%s failed", what)
    # The last frame, since the driver sees no more than this line of it.
    frame = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{os.path.basename(frame.filename)}:{frame.lineno}"
    return SplitReport(
        status="failed", trial=trial, error=f"{what}: {type(error).__name__}: {error} ({where})", exit_code=1
    )
