"""What is done to several runs at once: late writers, two drivers, gc beside an embed. Each play ends published."""

from __future__ import annotations

import threading

from tests.chaos.documents import NUM_SPLITS
from tests.chaos.harness import RUN_TIMEOUT_S, Round, UnexpectedError
from tests.chaos.proxy import Hold, Moment, Verdict
from tests.chaos.puts import MANIFEST, always


def late_writer(round_: Round, pattern: str) -> None:
    """A put is held until another run has published, and only then stored."""
    hold = Hold(round_.killer())
    round_.release_at_end(hold.let_go)
    held = round_.arm(pattern, Moment.BEFORE, hold, n=4)
    stored = threading.Event()
    round_.start()
    round_.wait()
    round_.until_published()
    names = {info.name for info in round_.job.store.list("")}
    round_.arm(pattern, Moment.STORED, lambda exchange: stored.set())
    hold.let_go()
    round_.outcome.counts = held.fired == 1 and stored.wait(20)
    if {info.name for info in round_.job.store.list("")} == names:
        round_.outcome.counts = False
    round_.judge()
    round_.until_published(max_runs=1)  # finds nothing to do, whatever has come


def two_drivers(round_: Round, *, blind: bool) -> None:
    """Two commands at once. Blind: neither sees the other's lease, so both go all the way to the manifest."""
    if blind:
        # To each, the runs of the store are as they were before both.
        round_.arm(r"store/runs/?", Moment.BEFORE, always(Verdict.STALE), method="GET", times=None)
    # A Ray of its own each: the encoders of both do not fit into the shared one.
    first, second = round_.start(on=None), round_.start(on=None)
    codes = {round_.wait(first), round_.wait(second)}
    round_.proxy.triggers = []
    if not codes <= {0, 4} or 0 not in codes:
        raise UnexpectedError(f"two drivers ended with {sorted(str(code) for code in codes)}")
    round_.outcome.counts = True
    round_.allowed_again = NUM_SPLITS  # the lease saves work, and where it is not seen both do all of it
    round_.until_published(max_runs=2)


def _with_garbage(round_: Round) -> None:
    """Versions 1, then 2 are published, and the input is as it was: version 1's work is garbage, and wanted again."""
    round_.until_published()
    round_.put_corpus(2)
    round_.until_published()
    round_.put_corpus(1)
    round_.knows_less = True
    round_.allowed_again = 3 * NUM_SPLITS


_GC = ("gc", "--delete", "--keep", "1")


def gc_before_publish(round_: Round) -> None:
    """An embed is held before its manifest; gc, blind to it, deletes what it reuses: it must not publish that."""
    _with_garbage(round_)
    hold = Hold()
    round_.release_at_end(hold.let_go)
    round_.arm(MANIFEST, Moment.BEFORE, hold)
    embed = round_.start()
    if not hold.held.wait(RUN_TIMEOUT_S):
        raise UnexpectedError(f"embed put no manifest: {embed.err[-800:]}")
    round_.arm(r"store/runs/?", Moment.BEFORE, always(Verdict.STALE), method="GET", times=None)
    code = round_.wait(round_.start(*_GC))
    if code != 0:
        raise UnexpectedError(f"gc ended with {code}: {round_.commands[-1].err[-800:]}")
    hold.let_go()
    late = round_.wait(embed)
    round_.proxy.triggers = []
    round_.outcome.counts = late == 4
    if late not in (4, 75):
        raise UnexpectedError(f"embed ended with {late} after gc deleted what it reuses: {embed.err[-800:]}")
    round_.until_published()


def publish_before_gc(round_: Round) -> None:
    """Gc is held before its victims are committed; an embed, blind to it, publishes what they are."""
    _with_garbage(round_)
    hold = Hold()
    round_.release_at_end(hold.let_go)
    round_.arm(MANIFEST, Moment.BEFORE, hold)
    gc = round_.start(*_GC)
    if not hold.held.wait(RUN_TIMEOUT_S):
        raise UnexpectedError(f"gc put no manifest: {gc.err[-800:]}")
    round_.arm(r"store/runs/?", Moment.BEFORE, always(Verdict.STALE), method="GET", times=None)
    round_.until_published(max_runs=1)
    hold.let_go()
    code = round_.wait(gc)
    round_.proxy.triggers = []
    round_.outcome.counts = code == 0
    if code not in (0, 4):
        raise UnexpectedError(f"gc ended with {code}: {gc.err[-800:]}")
    round_.until_published(max_runs=1)


def kill_gc(round_: Round, pattern: str, moment: Moment, method: str = "PUT") -> None:
    """Gc is killed; an embed goes on, and the next gc cleans up."""
    _with_garbage(round_)
    trigger = round_.arm(pattern, moment, round_.killer(), method=method)
    round_.start(*_GC)
    round_.wait()
    round_.outcome.counts = trigger.fired == 1
    round_.until_published()
    code = round_.wait(round_.start(*_GC))
    if code != 0:
        raise UnexpectedError(f"gc ended with {code}: {round_.commands[-1].err[-800:]}")
    round_.until_published(max_runs=1)
