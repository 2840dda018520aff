"""The puts of the commit protocol (pipeline/snapshots/commit.py), in its order, as the proxy knows them."""

from __future__ import annotations

from dataclasses import dataclass

from tests.chaos.proxy import Action, Verdict


@dataclass(frozen=True)
class Put:
    """A put of the protocol: whose, and how the proxy knows it."""

    name: str
    pattern: str
    by_driver: bool
    n: int = 1
    containing: bytes = b""


PUTS = (
    Put("store.json", r"store/store\.json", True),
    Put("run.json starting", r"store/runs/[^/]+/run\.json", True, containing=b'"state":"starting"'),
    Put("run.json running", r"store/runs/[^/]+/run\.json", True, containing=b'"state":"running"'),
    Put("embedding shard", r"store/embeddings/.*", False, n=5),
    Put("quarantine file", r"store/quarantine/.*", False),
    Put("record", r"store/records/.*", False, n=5),
    Put("journal", r"store/runs/[^/]+/records-.*\.parquet", True),
    Put("shards table", r"store/snapshots/.*\.shards\.parquet", True),
    Put("splits table", r"store/snapshots/.*\.splits\.parquet", True),
    Put("manifest", r"store/snapshots/[0-9]+\.json", True),
    Put("run.json finished", r"store/runs/[^/]+/run\.json", True, containing=b'"state":"finished"'),
)

SHARD, RECORD, MANIFEST = PUTS[3].pattern, PUTS[5].pattern, PUTS[9].pattern
INPUT = r"in/.+"
ANYTHING = r".*"


def always(verdict: Verdict | int) -> Action:
    """An action that knows one verdict."""
    return lambda exchange: verdict
