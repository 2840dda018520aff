"""What is done to one run: its processes die, its storage fails, its input changes. Each play ends published."""

from __future__ import annotations

import random
import signal
import subprocess
import threading
from itertools import cycle
from typing import Literal

from pipeline.uris import Storage
from tests.chaos.documents import FILE_ROWS, NUM_SPLITS
from tests.chaos.harness import IN_FLIGHT_A_KILL, RUN_TIMEOUT_S, Round, UnexpectedError
from tests.chaos.processes import Nodes, Role, with_role
from tests.chaos.proxy import Action, Exchange, Moment, Verdict, delay
from tests.chaos.puts import ANYTHING, INPUT, PUTS, RECORD, SHARD, Put, always


def kill_driver_at(round_: Round, put: Put, moment: Moment) -> None:
    """Kill the driver at a put of the protocol, then go on."""
    drops = put.by_driver and moment is Moment.BEFORE  # what its client had not sent dies with it
    trigger = round_.arm(put.pattern, moment, round_.killer(drops=drops), n=put.n, containing=put.containing)
    round_.start()
    round_.wait()
    round_.outcome.counts = trigger.fired == 1
    round_.until_published()


def kill_driver_in_turn(round_: Round) -> None:
    """Kill the driver at each put of the protocol in turn, and at another moment each, over one store.

    What CI has time for: all the moments of each are played by `kill_driver_at`.
    """
    # The quarantine file first: there are only three of them, and a later run may have none left to put.
    puts = sorted(PUTS, key=lambda put: (PUTS.index(put) > 2, put.name != "quarantine file", PUTS.index(put)))
    for put, moment in zip(puts, cycle(Moment), strict=False):
        drops = put.by_driver and moment is Moment.BEFORE
        n = min(put.n, 3)
        trigger = round_.arm(put.pattern, moment, round_.killer(drops=drops), n=n, containing=put.containing)
        command = round_.start()
        code = round_.wait()
        if trigger.fired != 1:
            raise UnexpectedError(f"no {put.name} was put; exit {code}: {command.err[-800:]}")
    round_.outcome.counts = round_.outcome.kills == len(PUTS)
    round_.until_published()


def kill_role_at(round_: Round, pattern: str, roles: tuple[Role, ...], method: str = "PUT", n: int = 4) -> None:
    """Kill a worker while the run goes on; the run itself ought to reach its end."""
    drops = Role.WRITER in roles  # it is the client of these puts, and what it had not sent dies with it
    trigger = round_.arm(pattern, Moment.BEFORE, round_.killer(*roles, drops=drops), n=n, method=method)
    round_.until_published()
    round_.outcome.counts = trigger.fired == 1 and round_.outcome.in_work > 0


def kill_head(round_: Round) -> None:
    """Kill raylet and GCS at once: the driver ends by itself, late, and no `finally` runs."""
    trigger = round_.arm(RECORD, Moment.STORED, round_.killer(Role.RAYLET, Role.GCS), n=4)
    round_.start(on=None)
    code = round_.commands[-1].wait(RUN_TIMEOUT_S)  # which code is Ray's to say: it ends the process itself
    round_.outcome.exits.append(code)
    round_.outcome.counts = trigger.fired == 1 and code not in (None, 0)
    round_.until_published(on=None)


def lose_nodes(round_: Round, num_losses: int) -> None:
    """Preempt the node with the encoder, and give another, so often."""
    round_.nodes = nodes = Nodes(round_.folder)

    def lose(exchange: Exchange) -> Verdict:
        round_.note_kill()
        nodes.preempt()
        return Verdict.PASS

    # Each time once a split more is recorded, or where there are no more splits, as soon as one is at it again.
    trigger = round_.arm(SHARD, Moment.BEFORE, lose, times=num_losses, n=2)
    runs = round_.until_published(on="nodes", max_runs=4 + num_losses)
    round_.outcome.counts = trigger.fired == num_losses and runs > 0


def send_signal(round_: Round, number: signal.Signals) -> None:
    """SIGINT or SIGTERM in the middle; it ends with the code for that, soon."""
    trigger = round_.arm(RECORD, Moment.STORED, round_.killer(number=number), n=4)
    round_.start()
    code = round_.wait(timeout_s=60)
    if code != 128 + number:
        raise UnexpectedError(f"exit {code} after {number.name}")
    round_.outcome.counts = trigger.fired == 1 and round_.outcome.in_work > 0
    round_.until_published()


def lose_reply(round_: Round, put: Put) -> None:
    """A put goes through and its reply does not: the run must not notice."""
    trigger = round_.arm(put.pattern, Moment.STORED, always(Verdict.DROP), n=put.n, containing=put.containing)
    round_.until_published(max_runs=1)
    round_.outcome.counts = trigger.fired == 1


def cut_body(round_: Round, put: Put) -> None:
    """The connection breaks in the middle of a put's body."""
    trigger = round_.arm(put.pattern, Moment.BEFORE, always(Verdict.CUT), n=put.n, containing=put.containing)
    round_.until_published(max_runs=1)
    round_.outcome.counts = trigger.fired == 1


def refuse(round_: Round, status: int) -> None:
    """Storage answers each third request with an error, for as long as the run takes."""
    round_.allowed_again = NUM_SPLITS  # those whose record could not be put at all
    count = iter(range(1_000_000))
    action: Action = lambda exchange: status if next(count) % 3 == 2 else None  # noqa: E731
    trigger = round_.arm(ANYTHING, Moment.BEFORE, action, times=None)
    round_.until_published()
    round_.outcome.counts = trigger.fired > 0


def slow(round_: Round) -> None:
    """Each put takes a second longer."""
    trigger = round_.arm(ANYTHING, Moment.BEFORE, delay(1), times=None)
    round_.until_published(max_runs=1)
    round_.outcome.counts = trigger.fired > 0


def cut_reads(round_: Round) -> None:
    """Replies to reads of the input break off in their bodies."""
    trigger = round_.arm(INPUT, Moment.STORED, always(Verdict.CUT), method="GET", times=6)
    round_.until_published()
    round_.outcome.counts = trigger.fired > 0


def rewrite_input(round_: Round, moment: Moment, n: int) -> None:
    """The input is written anew under the run, with another content of the same size."""
    round_.allowed_again = NUM_SPLITS
    trigger = round_.arm(SHARD, moment, lambda exchange: round_.put_corpus(2), n=n)
    round_.until_published()
    round_.outcome.counts = trigger.fired == 1
    _refuse_half_and_half(round_)
    round_.until_published(max_runs=2)  # where the run was too far to see it, the next one does


def rewrite_while_read(round_: Round, num_reads: int) -> None:
    """A file is written anew between two reads of a worker: what is read before and after is not of one version."""
    round_.allowed_again = NUM_SPLITS
    count = iter(range(1_000_000))

    def rewrite(exchange: Exchange) -> Verdict:
        # The driver reads footers too, when it plans.
        if not with_role(round_.processes(), Role.READER) or next(count) + 1 < num_reads:
            return Verdict.DISARM
        round_.put_corpus(2)
        return Verdict.PASS

    trigger = round_.arm(INPUT, Moment.STORED, rewrite, method="GET")
    round_.until_published()
    round_.outcome.counts = trigger.fired == 1
    _refuse_half_and_half(round_)
    round_.until_published(max_runs=2)


def _refuse_half_and_half(round_: Round) -> None:
    """Of each file the snapshot must have one version or the other."""
    found, _ = round_.found()
    for first in (0, FILE_ROWS):
        keys = {key for key in found if first <= int(key[0][1:]) < first + FILE_ROWS}
        if not any(keys <= round_.arena.clean(version).vectors.keys() for version in (1, 2)):
            raise UnexpectedError(f"half and half: documents from d{first} on are of both versions of their file")


def stale_input(round_: Round, what: Literal["listing", "head"]) -> None:
    """The store of version 1 is published; then the input is version 2, and storage shows version 1 once more."""
    round_.until_published()
    round_.put_corpus(2)
    pattern, method = (r"in/?", "GET") if what == "listing" else (INPUT, "HEAD")
    trigger = round_.arm(pattern, Moment.BEFORE, always(Verdict.STALE), method=method)
    round_.allowed_again += NUM_SPLITS
    for _ in range(3):
        round_.until_published()
    round_.outcome.counts = trigger.fired == 1 or what == "head"


def stale_first_listing(round_: Round) -> None:
    """The input is listed as it was before it was written anew: what is read is not what was listed."""
    listed = round_.arm(r"in/?", Moment.STORED, lambda exchange: round_.put_corpus(2), method="GET")
    round_.arm(r"in/?", Moment.BEFORE, always(Verdict.STALE), method="GET", n=2)
    round_.until_published()
    round_.outcome.counts = listed.fired == 1
    round_.until_published(max_runs=2)


def stale_store(round_: Round, pattern: str) -> None:
    """After a kill the next run is shown a listing of the store from before it."""
    round_.arm(RECORD, Moment.STORED, round_.killer(), n=6)
    round_.start()
    round_.wait()
    trigger = round_.arm(pattern, Moment.BEFORE, always(Verdict.STALE), method="GET")
    round_.allowed_again += NUM_SPLITS
    round_.knows_less = True
    round_.until_published()
    round_.outcome.counts = trigger.fired == 1


def stale_snapshots(round_: Round) -> None:
    """A published store looks as if nothing had been published: number 1 is taken, so the run gives way."""
    round_.until_published()
    trigger = round_.arm(r"store/snapshots/?", Moment.BEFORE, always(Verdict.STALE), method="GET", times=2)
    round_.start()
    code = round_.wait()
    round_.proxy.triggers = []
    if code not in (0, 4):
        raise UnexpectedError(f"exit {code} on a stale listing of snapshots")
    round_.outcome.counts = trigger.fired > 0
    round_.until_published(max_runs=1)


def full_disk(round_: Round) -> None:
    """The disk of a local store is full: exit 75; with room, the same command goes on."""
    mount = round_.folder / "disk"
    mount.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=128k", "vecmill-chaos", str(mount)]
    subprocess.run(options, check=True, capture_output=True)
    round_.release_at_end(lambda: subprocess.run(["umount", "-l", str(mount)], check=False, capture_output=True))
    round_.job.store, round_.job.store_options = Storage(str(mount / "store")), {}
    round_.job.config["store"] = {"uri": round_.job.store.uri}
    round_.start()
    code = round_.wait()
    if code != 75:
        raise UnexpectedError(f"exit {code} on a full disk: {round_.commands[-1].err[-800:]}")
    round_.outcome.counts = bool(round_.job.records())
    subprocess.run(["mount", "-o", "remount,size=64m", str(mount)], check=True, capture_output=True)
    round_.until_published()


def flaky(seed: int, ratio: float) -> tuple[Action, Action]:
    """Faults of storage at random: what to do with a request before it is forwarded, and with its reply."""
    dice, lock = random.Random(seed), threading.Lock()

    def throw(*faces: Verdict | int) -> Verdict | int | None:
        with lock:
            return dice.choice(faces) if dice.random() < ratio / 2 else None

    before: Action = lambda exchange: throw(503, 500, Verdict.DROP, Verdict.CUT)  # noqa: E731
    stored: Action = lambda exchange: throw(Verdict.DROP, Verdict.CUT, 503)  # noqa: E731
    return before, stored


RANDOM_PUTS = (SHARD, RECORD, r"store/runs/.*", r"store/quarantine/.*")


def random_round(round_: Round, seed: int) -> None:
    """One to three kills of anything at any moment, while 5 % of all requests fail."""
    dice = random.Random(seed)
    round_.allowed_again = IN_FLIGHT_A_KILL  # those whose record could not be put at all
    before, stored = flaky(seed, 0.05)
    fired = []
    for _ in range(dice.randint(1, 3)):
        roles: tuple[Role, ...] = dice.choice([(), (), (Role.ENCODER,), (Role.READER,), (Role.WRITER,)])
        action = round_.killer(*roles, number=dice.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
        moment, n = dice.choice(list(Moment)), dice.randint(1, 8)
        pattern = dice.choice(RANDOM_PUTS[:3])
        fired.append(round_.arm(pattern, moment, action, n=n))
    round_.arm(ANYTHING, Moment.BEFORE, before, times=None, method="")
    round_.arm(ANYTHING, Moment.STORED, stored, times=None, method="")
    round_.until_published(max_runs=12)
    round_.outcome.counts = any(trigger.fired for trigger in fired) and round_.outcome.in_work > 0
