"""What benchmarks share that hold ours against peers: who is asked, who is absent and why, and rounds as figures."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import connection, parent_process
from typing import Any

import click
import numpy as np

Spread = dict[str, float]
"""median, q1 and q3 over the rounds."""


class Unavailable(Exception):
    """A contestant cannot take part here, and why."""


def parse_peers(text: str, known: Sequence[str]) -> list[str]:
    """The names of `--peers`, in the order of those known."""
    asked = {name.strip() for name in text.split(",") if name.strip()}
    unknown = asked - set(known)
    if unknown:
        raise click.BadParameter(f"no such peer: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return [name for name in known if name in asked]


def peer_versions(names: Sequence[str]) -> str:
    """What is compared, with its version."""
    told = []
    for name in names:
        try:
            told.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            told.append(f"{name} absent")
    return ", ".join(told)


def why(error: Exception) -> str:
    """Why a contestant cannot take part, from what it raised."""
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed: pip install 'vecmill[bench]'"
    if isinstance(error, Unavailable):
        return str(error)
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"


def end_with_parent() -> None:
    """End this process when the one that started it ends, however that comes: it may hold gigabytes and both cores."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def spread(values: Any) -> Spread:
    """Median and quartiles."""
    q1, median, q3 = np.percentile(values, [25, 50, 75])
    return {"median": float(median), "q1": float(q1), "q3": float(q3)}
