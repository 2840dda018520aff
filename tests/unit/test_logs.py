"""Every log line says which run and split it is of, in both formats."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator

import pytest

from pipeline.logs import LogSettings, log_format, log_run, log_split, set_up_logging


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = log_format()
    yield
    log_split()
    log_run("-")
    set_up_logging(before)


def test_a_line_of_any_thread_carries_the_run_and_of_its_own_thread_the_split(
    capsys: pytest.CaptureFixture[str],
) -> None:
    set_up_logging()
    log_run("run-7")
    log_split("split-9")
    logging.getLogger("pipeline.x").info("here")
    thread = threading.Thread(target=logging.getLogger("pipeline.x").info, args=("there",))
    thread.start()
    thread.join()
    here, there = capsys.readouterr().err.splitlines()
    assert here.endswith("INFO pipeline.x [run run-7 split split-9] here")
    assert there.endswith("INFO pipeline.x [run run-7 split -] there")


def test_json_lines_carry_them_as_fields_and_libraries_too(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("json")
    log_run("run-7")
    log_split("split-9")
    logging.getLogger("botocore").warning("ünsaid %s", "things")
    logging.getLogger("botocore").info("not shown")
    try:
        raise RuntimeError("why")
    except RuntimeError:
        logging.getLogger("jobs").exception("failed")
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    fields = {"level": "WARNING", "logger": "botocore", "run_id": "run-7", "split_id": "split-9"}
    assert {name: first[name] for name in fields} == fields
    assert first["message"] == "ünsaid things"
    assert "RuntimeError: why" in second["exc_info"]


def test_a_worker_logs_as_its_driver_does(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("json")
    settings = LogSettings.current("run-8")
    set_up_logging("text")
    settings.apply()
    logging.getLogger("pipeline").info("from a worker")
    assert json.loads(capsys.readouterr().err)["run_id"] == "run-8"
