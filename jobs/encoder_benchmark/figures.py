"""The rounds as figures: each a ratio of what was measured in the same round, then the median over rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jobs.benchmark_peers import Spread, spread
from jobs.encoder_benchmark.ceiling import CEILING
from jobs.encoder_benchmark.contest import Result
from jobs.encoder_benchmark.ours import OURS, REFERENCE


def figures_of(results: Sequence[Result], num_tokens: int) -> dict[str, Any]:
    """All figures as a JSON value.

    Args:
        results: of the same rounds; ours among them.
        num_tokens: real ones of the texts, the same for all.

    Returns:
        "first_peer", whose name `to_first_peer` is about (None without peers), "flops" of a pass (None without
        a ceiling), and "rows", one a result. A row has `tokens_per_s` and `rounds`, and, each over the rounds'
        own ratios, `to_first_peer`, `ours_to_it` and `of_ceiling`.
    """
    ran = {result.name: result for result in results if not result.skipped}
    rates = {name: np.array([num_tokens / done.seconds for done in result.passes]) for name, result in ran.items()}
    own = ("ours", REFERENCE, CEILING)
    first = next((name for name in rates if not name.startswith("ours") and name not in own), None)
    ceiling = ran.get(CEILING)
    rows: list[dict[str, Any]] = []
    for result in results:
        row: dict[str, Any] = {"name": result.name, "settings": result.settings}
        rows.append(row)
        if result.skipped:
            row["skipped"] = result.skipped
            continue
        rate, last = rates[result.name], result.passes[-1]
        row["tokens_per_s"] = spread(rate)
        row["rounds"] = [round(float(value), 1) for value in rate]
        if first:
            row["to_first_peer"] = spread(rate / rates[first])
        row["ours_to_it"] = spread(rates[OURS] / rate)
        if ceiling:
            row["of_ceiling"] = spread(rate / rates[CEILING])
        if result.cosine_mean is not None:
            row |= {"cosine_mean": result.cosine_mean, "cosine_min": result.cosine_min}
        if last.num_padded_tokens is not None:
            row["padding_ratio"] = last.num_padded_tokens / num_tokens
    return {"first_peer": first, "flops": ceiling.passes[-1].flops if ceiling else None, "rows": rows}


_HEADER = (
    f"{'':<42} {'k tokens/s':>18} {'x first':>8} {'ours is x':>18} {'of ceiling':>10} "
    f"{'cosine':>9} {'min':>8} {'padding':>8}"
)


def table_of(figures: Mapping[str, Any], num_tokens: int) -> str:
    """The figures as lines."""
    lines = [_HEADER, *(_line(row) for row in figures["rows"])]
    lines += ["", "medians of the rounds, quartiles in brackets; cosine to ours in float32"]
    if figures["first_peer"]:
        lines.append(f"x first: to {figures['first_peer']}")
    if figures["flops"]:
        ceiling = next(row for row in figures["rows"] if row["name"] == CEILING)
        per_token = figures["flops"] / num_tokens
        lines.append(
            f"ceiling: {per_token * ceiling['tokens_per_s']['median'] / 1e12:.3f} TFLOP/s, "
            f"{per_token / 1e6:.1f} MFLOP a token"
        )
    lines += [f"{row['name']}: {row['settings']}" for row in figures["rows"] if row["settings"]]
    return "\n".join(lines)


def _line(row: Mapping[str, Any]) -> str:
    if "skipped" in row:
        return f"{row['name']:<42} skipped: {row['skipped']}"
    return (
        f"{row['name']:<42} {_spread(row['tokens_per_s'], 1e-3, 1):>18} {_of(row, 'to_first_peer', '.2f'):>8} "
        f"{_spread(row['ours_to_it'], 1, 2):>18} {_of(row, 'of_ceiling', '.1%'):>10} "
        f"{_number(row, 'cosine_mean', 6):>9} {_number(row, 'cosine_min', 5):>8} {_number(row, 'padding_ratio', 4):>8}"
    )


def _spread(found: Spread, scale: float, digits: int) -> str:
    median, q1, q3 = (f"{found[key] * scale:.{digits}f}" for key in ("median", "q1", "q3"))
    return f"{median} [{q1} {q3}]"


def _of(row: Mapping[str, Any], key: str, shown: str) -> str:
    return format(row[key]["median"], shown) if key in row else "-"


def _number(row: Mapping[str, Any], key: str, digits: int) -> str:
    return f"{row[key]:.{digits}f}" if key in row else "-"
