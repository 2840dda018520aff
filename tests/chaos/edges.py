"""Every edge of the commit protocol, and what else may happen to a run, by name: one table.

The first part is the protocol itself (pipeline/snapshots/commit.py): each of its puts, at each of
three moments, with the driver killed. The rest is what dies or lies beside the driver.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from tests.chaos import plays, races
from tests.chaos.harness import Round
from tests.chaos.processes import Role
from tests.chaos.proxy import Moment
from tests.chaos.puts import INPUT, MANIFEST, PUTS, RECORD, SHARD

Kind = Literal["protocol", "process", "node", "signal", "storage", "race", "input", "random"]


@dataclass(frozen=True)
class Edge:
    """Something that goes wrong; `play` arms it, and runs the command until it is published."""

    name: str
    kind: Kind
    play: Callable[[Round], None]


EDGES: tuple[Edge, ...] = (
    *(
        Edge(f"driver killed, {put.name}, {moment}", "protocol", partial(plays.kill_driver_at, put=put, moment=moment))
        for put in PUTS
        for moment in Moment
    ),
    Edge("driver killed, each put in turn", "protocol", plays.kill_driver_in_turn),
    Edge("encoder killed", "process", partial(plays.kill_role_at, pattern=SHARD, roles=(Role.ENCODER,))),
    Edge("encoder killed at once", "process", partial(plays.kill_role_at, pattern=SHARD, roles=(Role.ENCODER,), n=1)),
    Edge(
        "read worker killed",
        "process",
        partial(plays.kill_role_at, pattern=INPUT, roles=(Role.READER,), method="GET", n=1),
    ),
    Edge("write worker killed, shard", "process", partial(plays.kill_role_at, pattern=SHARD, roles=(Role.WRITER,))),
    Edge("write worker killed, record", "process", partial(plays.kill_role_at, pattern=RECORD, roles=(Role.WRITER,))),
    Edge("Ray head killed", "node", plays.kill_head),
    Edge("node lost", "node", partial(plays.lose_nodes, num_losses=1)),
    Edge("20 nodes lost", "node", partial(plays.lose_nodes, num_losses=20)),
    Edge("SIGTERM", "signal", partial(plays.send_signal, number=signal.SIGTERM)),
    Edge("SIGINT", "signal", partial(plays.send_signal, number=signal.SIGINT)),
    *(Edge(f"reply lost, {put.name}", "storage", partial(plays.lose_reply, put=put)) for put in PUTS),
    *(Edge(f"body cut, {put.name}", "storage", partial(plays.cut_body, put=put)) for put in PUTS),
    Edge("503 to a third of all requests", "storage", partial(plays.refuse, status=503)),
    Edge("500 to a third of all requests", "storage", partial(plays.refuse, status=500)),
    Edge("every put a second late", "storage", plays.slow),
    Edge("reads of the input cut", "storage", plays.cut_reads),
    Edge("disk full", "storage", plays.full_disk),
    Edge("late writer, shard", "race", partial(races.late_writer, pattern=SHARD)),
    Edge("late writer, record", "race", partial(races.late_writer, pattern=RECORD)),
    Edge("gc before an embed publishes", "race", races.gc_before_publish),
    Edge("embed publishes before gc does", "race", races.publish_before_gc),
    *(
        Edge(f"gc killed, victims, {moment}", "race", partial(races.kill_gc, pattern=MANIFEST, moment=moment))
        for moment in Moment
    ),
    *(
        Edge(f"gc killed, delete, {moment}", "race", partial(races.kill_gc, pattern="", moment=moment, method="POST"))
        for moment in Moment
    ),
    Edge("two drivers", "race", partial(races.two_drivers, blind=False)),
    Edge("two drivers, blind", "race", partial(races.two_drivers, blind=True)),
    Edge(
        "input rewritten, before its first shard",
        "input",
        partial(plays.rewrite_input, moment=Moment.BEFORE, n=1),
    ),
    Edge(
        "input rewritten, between two splits",
        "input",
        partial(plays.rewrite_input, moment=Moment.STORED, n=9),
    ),
    *(
        Edge(
            f"input rewritten, after read {num} of a worker", "input", partial(plays.rewrite_while_read, num_reads=num)
        )
        for num in (1, 4)
    ),
    Edge("stale listing of the input, first run", "input", plays.stale_first_listing),
    Edge("stale listing of the input, next run", "input", partial(plays.stale_input, what="listing")),
    Edge("stale etag of the input", "input", partial(plays.stale_input, what="head")),
    Edge("stale listing of records", "storage", partial(plays.stale_store, pattern=r"store/records/.*")),
    Edge("stale listing of runs", "storage", partial(plays.stale_store, pattern=r"store/runs/?")),
    Edge("stale listing of snapshots", "storage", plays.stale_snapshots),
)
