"""`python -m tests.chaos.campaign`: every edge once, then random rounds; what `make chaos` runs.

Results are lines of JSON in chaos/results.jsonl; a second call goes on with what is missing there.
"""

from __future__ import annotations

import json
import signal
import sys
from collections import Counter
from dataclasses import asdict
from functools import partial
from typing import Any

import click

from tests.chaos.edges import EDGES, Edge
from tests.chaos.harness import Arena, UnexpectedError, play
from tests.chaos.plays import random_round
from tests.chaos.processes import ROOT

RESULTS = ROOT / "chaos" / "results.jsonl"
_ATTEMPTS = 3


@click.command()
@click.option("--only", help="Edges with this in their kind or name, whether they were played or not.")
@click.option("--rounds", default=30, show_default=True, help="Random rounds after the edges.")
@click.option("--first-seed", default=1, show_default=True, help="Seed of the first random round.")
def main(only: str | None, rounds: int, first_seed: int) -> None:
    """Play what is missing, and print the table."""
    for ending in (signal.SIGINT, signal.SIGTERM):  # also where a shell has started it with "&"
        signal.signal(ending, lambda number, frame: sys.exit(128 + number))
    seeds = range(first_seed, first_seed + rounds)
    table = [*EDGES, *(Edge(f"random {seed}", "random", partial(random_round, seed=seed)) for seed in seeds)]
    if only is not None:
        wanted = [edge for edge in table if only in f"{edge.kind}: {edge.name}"]
    else:
        done = {outcome["edge"] for outcome in _results() if outcome["counts"] and outcome["ok"]}
        wanted = [edge for edge in table if edge.name not in done]
    RESULTS.parent.mkdir(exist_ok=True)
    with Arena(RESULTS.parent / "rounds") as arena:
        for number, edge in enumerate(wanted, 1):
            print(f"[{number}/{len(wanted)}] {edge.name}", flush=True)
            try:
                _play(arena, edge)
            except UnexpectedError as error:
                raise click.ClickException(f"not even a clean run ends well: {error}") from None
    print(summary(_results()))


def _play(arena: Arena, edge: Edge) -> None:
    """Until it counts, or fails."""
    for _ in range(_ATTEMPTS):
        outcome = play(arena, edge.name, edge.kind, edge.play)
        with RESULTS.open("a", encoding="utf-8") as results:
            results.write(json.dumps(asdict(outcome)) + "\n")
        said = "ok" if outcome.ok else f"FAILED {outcome.error}"
        print(
            f"    {said}; exits {outcome.exits}, in work {outcome.in_work}, {outcome.seconds} s"
            f"{'' if outcome.counts else '; does not count'}",
            flush=True,
        )
        if outcome.counts or not outcome.ok:
            return


def _results() -> list[dict[str, Any]]:
    if not RESULTS.exists():
        return []
    return [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]


def summary(results: list[dict[str, Any]]) -> str:
    """The table over the last result of each edge: rounds, faults and what was lost, by kind."""
    last = {result["edge"]: result for result in results if result["counts"] or not result["ok"]}
    lines = ["kind       rounds  ok  runs  kills  faults  lost  doubled  foreign  strayed  rewritten  encoded again"]
    for kind in [*dict.fromkeys(result["kind"] for result in last.values()), "all"]:
        rows = [result for result in last.values() if kind in ("all", result["kind"])]
        total: Counter[str] = Counter()
        for result in rows:
            total.update({name: value for name, value in result.items() if isinstance(value, int)})
            total["runs"] += len(result["exits"])
            total["faults"] += sum(result["faults"].values())
        cells = [total[name] for name in ("lost", "doubled", "foreign", "strayed", "rewritten", "encoded_again")]
        lines.append(
            f"{kind:<10} {len(rows):>6} {total['ok']:>3} {total['runs']:>5} {total['kills']:>6} {total['faults']:>7} "
            + "  ".join(f"{cell:>6}" for cell in cells)
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
