"""Fixtures of the whole job: a Ray that tests in this process share, a tiny model, a published store."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.corpus import Job, make_rows, put_files
from tests.models import make_model


@pytest.fixture(scope="session")
def ray_in_process() -> Iterator[None]:
    """Ray with four logical CPUs in this process; commands find it initialized and leave it running."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    import ray

    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random BERT of 32 dimensions."""
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def no_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on the test fails if a flow is started."""
    forbid_flow(monkeypatch)


def forbid_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the fixture, from the middle of a test on."""
    import ray.data

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a flow was started")

    monkeypatch.setattr(ray.data, "from_arrow", refuse)


@pytest.fixture
def by_value(request: pytest.FixtureRequest) -> Iterator[None]:
    """Ships what the test's own file defines to workers, who cannot import it."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(request.module)  # type: ignore[no-untyped-call]
    yield
    cloudpickle.unregister_pickle_by_value(request.module)  # type: ignore[no-untyped-call]


@pytest.fixture(scope="session")
def published(ray_in_process: None, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A store with a snapshot of 40 documents in two files; for reading only."""
    job = Job.local(tmp_path_factory.mktemp("published"), tiny_model)
    put_files(job.corpus, {"a.parquet": make_rows(25), "b.jsonl": make_rows(15, begin=25)})
    assert job.published()["documents_in"] == 40
    return job
