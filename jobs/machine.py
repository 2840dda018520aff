"""The machine that figures were taken on: none means anything without it."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

from pipeline.errors import UsageError
from pipeline.parallel import num_cores

_VERSIONED = ("vecmill", "ray", "torch", "transformers", "sentence-transformers", "pyarrow")


def describe_machine() -> str:
    """CPU, cores, load and versions on two lines.

    Raises:
        UsageError: one of the packages that are compared is not installed.
    """
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    try:
        versions = ", ".join(f"{name} {version(name)}" for name in _VERSIONED)
    except PackageNotFoundError as error:
        raise UsageError(f"benchmark needs {error.name}, which is not installed: pip install 'vecmill[dev]'") from None
    return f"{cpu_model()}, {num_cores()} cores, load {load}\nPython {platform.python_version()}, {versions}"


def show_figures(machine: str, figures: Mapping[str, Any], table: str, *, as_json: bool) -> None:
    """The end of a benchmark on stdout: the machine, then its figures, as a table or as one JSON object."""
    if as_json:
        click.echo(json.dumps({"machine": machine.splitlines(), **figures}))
    else:
        click.echo(f"{machine}\n{table}")


def cpu_model() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []  # not Linux
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
