"""`vecmill plan CONFIG [key.path=value ...]`: what a run would do, take and cost; nothing is written to the store."""

from __future__ import annotations

import json
import os
from typing import Any

import click
import numpy as np

from jobs.cli import log_format_option, run
from jobs.machine import cpu_model
from pipeline.config import load_config, redact_uri
from pipeline.estimate import Estimate, Forecast, forecast
from pipeline.estimate.advice import advice
from pipeline.parallel import num_cores


@click.command(name="plan")
@click.argument("config")
@click.argument("overrides", nargs=-1, metavar="[key.path=value ...]")
@click.option("--gpus", type=click.IntRange(min=1), help="How many encoders will work, each as fast as the one here.")
@click.option("--price", type=click.FloatRange(min=0), help="Of an hour of one GPU, in any currency.")
@click.option("--json", "as_json", is_flag=True, help="One JSON line.")
@log_format_option
def main(config: str, overrides: tuple[str, ...], gpus: int | None, price: float | None, as_json: bool) -> None:
    """Tell files, documents, tokens, reuse, time and cost of `embed CONFIG`, from listings, a sample and a probe."""
    found = forecast(load_config(config, overrides), gpus)
    figures = figures_of(found, price)
    click.echo(json.dumps(figures) if as_json else "\n".join(_lines(found, figures)))


def figures_of(found: Forecast, price: float | None = None) -> dict[str, Any]:
    """All figures as a JSON value; what is estimated comes with `_plus_minus` (95 %)."""
    listed, sample, texts, probe, seconds = found.listed, found.sample, found.texts, found.probe, found.seconds
    figures: dict[str, Any] = {
        "model": redact_uri(found.config.encoder.model),
        "files": listed.num_files,
        "bytes": listed.num_bytes,
        "files_done": listed.num_files_done,
        "documents_done": listed.num_documents_done,
        "splits": listed.num_splits,
        "shards": found.num_shards if listed.num_splits else 0,
        **_estimate("documents", found.num_documents),
        **_estimate("sequences", found.num_sequences),
        **_estimate("tokens", found.num_tokens),
        "store_bytes": round(found.num_sequences.value * found.dim * _WIDTHS[found.config.store.dtype]),
    }
    if sample is not None and texts is not None:
        figures |= {
            "documents_read": sample.num_read,
            "documents_tokenized": texts.num_documents,
            "equal_texts_read": found.num_equal_texts,
            "equal_ids_read": found.num_equal_ids,
            "quarantined_read": sample.reasons,
        }
    if texts is not None and texts.num_documents:
        spread = np.percentile(texts.document_tokens, [50, 90, 99, 100]).round().astype(int).tolist()
        figures |= dict(zip(("tokens_median", "tokens_p90", "tokens_p99", "tokens_max"), spread, strict=True))
        figures |= {
            "max_tokens": found.max_tokens,
            "truncated_ratio": texts.truncated_ratio,
            "thrown_away_ratio": texts.thrown_ratio,
        }
    if probe is not None and seconds is not None:
        figures |= {
            "device": found.device,
            "machine": f"{cpu_model()}, {num_cores()} cores",
            "load": round(os.getloadavg()[0], 1),
            "compute": found.compute,
            "tokens_per_s": round(probe.tokens_per_s, 1),
            "padding_ratio": round(probe.padding_ratio, 4),
            "probe_batches": probe.num_batches,
            "probe_s": round(probe.measured_s, 1),
            "encoders": seconds.num_encoders,
            "start_s": round(seconds.start_s, 1),
            "encode_s": round(seconds.encode_s.value, 1),
            "others_s": round(seconds.others_s, 1),
            "seconds": round(seconds.total.value, 1),
            "seconds_plus_minus": round(seconds.total.plus_minus, 1),
        }
        if price is not None:
            hours = seconds.total.value * seconds.num_encoders / 3600
            figures |= {"gpu_hours": round(hours, 4), "cost": round(hours * price, 2)}
    return figures | {"advice": advice(found)}


_WIDTHS = {"float16": 2, "float32": 4}


def _estimate(name: str, estimate: Estimate) -> dict[str, int]:
    return {name: round(estimate.value), f"{name}_plus_minus": round(estimate.plus_minus)}


def _lines(found: Forecast, figures: dict[str, Any]) -> list[str]:
    rows = [("model", figures["model"]), ("files", f"{figures['files']:,}, {_bytes(figures['bytes'])}")]
    if figures["files_done"]:
        done = f"{figures['files_done']:,} files with {figures['documents_done']:,} documents; the rest is left to do:"
        rows.append(("done already", done))
    if not figures["splits"]:
        return [*_aligned(rows), "nothing is left to do"]
    rows += [
        ("documents", _count(figures, "documents")),
        ("tokens", _count(figures, "tokens")),
        ("splits", f"{figures['shards']:,}"),
    ]
    if "tokens_median" in figures:
        spread = ", ".join(f"{name} {figures[f'tokens_{name}']:,}" for name in ("median", "p90", "p99", "max"))
        rows.append(("tokens a text", spread))
        cut = f"{figures['truncated_ratio']:.1%} of texts over {found.max_tokens} tokens, "
        rows.append(("truncated", f"{cut}{figures['thrown_away_ratio']:.1%} of tokens thrown away"))
        if found.config.encoder.overlong == "chunk":
            rows.append(("chunks", _count(figures, "sequences")))
    repeats = f"{figures['equal_texts_read']:,} equal texts, {figures['equal_ids_read']:,} equal ids"
    rows.append(("doubles", f"{repeats} among {figures['documents_read']:,} documents read"))
    rows.append(("vectors", f"{_bytes(figures['store_bytes'])} as {found.config.store.dtype}"))
    if "seconds" in figures:
        rows += _time_rows(figures)
    return [*_aligned(rows), *(f"! {sentence}" for sentence in figures["advice"])]


def _time_rows(figures: dict[str, Any]) -> list[tuple[str, str]]:
    speed = f"{figures['tokens_per_s']:,.0f} tokens/s in {figures['compute']} on {figures['device']}"
    where = f"{figures['machine']}, load {figures['load']}"
    encoders = f"{figures['encoders']} encoder{'s' * (figures['encoders'] != 1)}"
    total = f"{_time(figures['seconds'])} +- {_time(figures['seconds_plus_minus'])} with {encoders} like that"
    parts = f"start {figures['start_s']:.0f} s, encode {figures['encode_s']:.0f} s, others {figures['others_s']:.0f} s"
    rows = [("probe", f"{speed} ({where})"), ("time", f"{total} ({parts})")]
    if "cost" in figures:
        rows.append(("cost", f"{figures['cost']:,.2f} for {figures['gpu_hours']:,.2f} GPU hours"))
    return rows


def _aligned(rows: list[tuple[str, str]]) -> list[str]:
    return [f"{name:<14}{value}" for name, value in rows]


def _count(figures: dict[str, Any], name: str) -> str:
    bound = figures[f"{name}_plus_minus"]
    share = bound / figures[name] if figures[name] else 0.0
    return f"{figures[name]:,}" + (f" +- {bound:,} ({share:.1%})" if bound else "")


def _bytes(num: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if num < 1000:
            return f"{num:.3g} {unit}"
        num /= 1000
    return f"{num:,.3g} TB"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


if __name__ == "__main__":
    run(main)
