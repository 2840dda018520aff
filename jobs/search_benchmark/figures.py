"""The rounds as figures: ratios are of the same round, then the median over rounds with quartiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jobs.benchmark_peers import spread
from jobs.search_benchmark.contest import Result


def figures_of(results: Sequence[Result], targets: Sequence[float]) -> dict[str, list[dict[str, Any]]]:
    """By target, a row a contestant: `settings`, `recall_at_10`, `ms`, `p95_ms`, and `ours`: what ours takes of it."""
    found: dict[str, list[dict[str, Any]]] = {}
    for target in targets:
        own = next(result for result in results if result.name == "ours").chosen.get(target)
        rows = found[str(target)] = []
        for result in results:
            row: dict[str, Any] = {"name": result.name}
            rows.append(row)
            chosen = result.chosen.get(target)
            if result.skipped:
                row["skipped"] = result.skipped
            elif chosen is None:
                row["skipped"] = f"reaches {result.best_recall:.4f}"
            else:
                rounds_ms = np.array(chosen.rounds_ms)
                row |= {
                    "settings": chosen.told,
                    "recall_at_10": round(chosen.recall, 5),
                    "ms": spread(rounds_ms),
                    "p95_ms": float(np.median(chosen.high_ms)),
                    "rounds_ms": [round(one, 3) for one in chosen.rounds_ms],
                }
                if own is not None:
                    row["ours"] = spread(np.array(own.rounds_ms) / rounds_ms)
    return found


_HEADER = f"{'':<12} {'recall@10':>10} {'ms a query':>20} {'p95':>8} {'ours is x':>18}  settings"


def table_of(figures: Mapping[str, Sequence[Mapping[str, Any]]], costs: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures as lines."""
    lines = []
    for target, rows in figures.items():
        lines += [f"\nrecall@10 >= {target}", _HEADER, *map(_line, rows)]
        if target in costs:
            cost = costs[target]
            lines.append(
                f"ours, nothing cached: {cost['bytes_per_query'] / 2**20:.2f} MiB in {cost['reads_per_query']} reads a "
                f"query, {cost['codes_read_ratio']:.1%} of the codes"
            )
            lines.append(
                f"ours, warm: {cost['batch_queries']:,} queries at once {cost['batch_s']:.1f} s, one by one "
                f"{cost['one_by_one_s']:.1f} s: {cost['batch_speedup']:.1f} times as fast"
            )
    lines += ["", "one query, one client, warm; medians of the rounds, quartiles in brackets"]
    return "\n".join(lines)


def _line(row: Mapping[str, Any]) -> str:
    if "skipped" in row:
        return f"{row['name']:<12} skipped: {row['skipped']}"
    ours = row.get("ours")
    return (
        f"{row['name']:<12} {row['recall_at_10']:>10.4f} {_spread(row['ms']):>20} {row['p95_ms']:>8.2f} "
        f"{_spread(ours) if ours else '-':>18}  {row['settings']}"
    )


def _spread(found: Mapping[str, float]) -> str:
    return f"{found['median']:.2f} [{found['q1']:.2f} {found['q3']:.2f}]"
