"""The rounds as figures: ratios are of the same round, then the median over rounds with quartiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jobs.benchmark_peers import Spread, spread
from jobs.index_benchmark.contest import Result
from jobs.index_benchmark.ours import OURS


def figures_of(results: Sequence[Result], num_rows: int) -> list[dict[str, Any]]:
    """One a contestant, as JSON values.

    Each has `wall_s`, `cpu_s` and `rounds` of both; `ours_wall` and `ours_cpu`, what ours takes of its wall and CPU
    seconds; `peak_uss_bytes` of one process in any round, and which, `peak_uss_total_bytes` of all at once;
    `bytes_per_vector`, in all and by kind; `stages_s`.
    """
    own = next(result for result in results if result.name == OURS)
    rows: list[dict[str, Any]] = []
    for result in results:
        row: dict[str, Any] = {"name": result.name}
        rows.append(row)
        if result.skipped:
            row["skipped"] = result.skipped
            continue
        wall, cpu = _seconds(result)
        own_wall, own_cpu = _seconds(own)
        last = result.builds[-1][0]
        highest = max((usage for _, usage in result.builds), key=lambda usage: usage.peak_bytes)
        stages = {name: [built.stages[name] for built, _ in result.builds] for name in last.stages}
        kinds = {kind: round(num_bytes / num_rows, 3) for kind, num_bytes in last.files.items()}
        row |= {
            "settings": last.settings,
            "wall_s": spread(wall),
            "cpu_s": spread(cpu),
            "rounds": [[round(one, 2), round(other, 2)] for one, other in zip(wall, cpu, strict=True)],
            "ours_wall": spread(own_wall / wall),
            "ours_cpu": spread(own_cpu / cpu),
            "cpu_s_by_process": result.builds[-1][1].cpu_s_by_process,
            "peak_uss_bytes": highest.peak_bytes,
            "peak_uss_process": highest.peak_process,
            "peak_uss_total_bytes": max(usage.peak_total_bytes for _, usage in result.builds),
            "bytes_per_vector": round(sum(last.files.values()) / num_rows, 2),
            "bytes_per_vector_by_kind": kinds,
            "stages_s": {name: round(float(np.median(seconds)), 2) for name, seconds in stages.items()},
            **last.figures,
        }
    return rows


def _seconds(result: Result) -> tuple[Any, Any]:
    wall = np.array([built.seconds for built, _ in result.builds], np.float64)
    return wall, np.array([usage.cpu_s for _, usage in result.builds], np.float64)


_HEADER = (
    f"{'':<26} {'wall s':>8} {'CPU s':>8} {'ours is x wall':>18} {'ours is x CPU':>18} {'peak USS MiB':>13} "
    f"{'of all':>7} {'B/vector':>9}"
)


def table_of(rows: Sequence[Mapping[str, Any]], *, is_made: bool) -> str:
    """The figures as lines."""
    lines = [_HEADER, *(_line(row) for row in rows), ""]
    lines.append("medians of the rounds, quartiles in brackets; peak USS: of the process with the most, and of all")
    ran = [row for row in rows if "skipped" not in row]
    for row in ran:
        stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in row["stages_s"].items())
        lines.append(f"{row['name']}: {row['settings']}; seconds: {stages}; highest: {row['peak_uss_process']}")
    own = next(row for row in ran if row["name"] == OURS)
    kinds = ", ".join(f"{kind} {num:.2f}" for kind, num in own["bytes_per_vector_by_kind"].items())
    used = ", ".join(f"{name} {seconds:.1f}" for name, seconds in own["cpu_s_by_process"].items())
    lines.append(f"ours, CPU-seconds of the last round: {used}")
    lines.append(f"ours, bytes per vector: {kinds}; a code of {own['codec']} is {own['code_bytes']} B")
    low, high = own["recall_interval"]
    if is_made:
        lines.append("made rows: for size, seconds and memory; their recall says nothing")
    else:
        lines.append(
            f"ours, recall@10 {own['recall_at_10']:.4f} [{low:.3f} {high:.3f}] on {own['queries']}: nprobe "
            f"{own['nprobe']}, rerank {own['rerank']}, {own['read_ratio']:.1%} of the codes read"
        )
    return "\n".join(lines)


def _line(row: Mapping[str, Any]) -> str:
    if "skipped" in row:
        return f"{row['name']:<26} skipped: {row['skipped']}"
    return (
        f"{row['name']:<26} {row['wall_s']['median']:>8.1f} {row['cpu_s']['median']:>8.1f} "
        f"{_ratio(row['ours_wall']):>18} {_ratio(row['ours_cpu']):>18} {row['peak_uss_bytes'] / 2**20:>13,.0f} "
        f"{row['peak_uss_total_bytes'] / 2**20:>7,.0f} {row['bytes_per_vector']:>9.1f}"
    )


def _ratio(found: Spread) -> str:
    return f"{found['median']:.2f} [{found['q1']:.2f} {found['q3']:.2f}]"
