"""A run in which nothing moves ends by itself; one whose splits are merely long does not.

Each with a Ray of its own, in a process of its own: what hangs stays there until its Ray ends.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.corpus import Job, make_rows, put_files
from tests.integration.test_small_clusters import run_script

_STAGES = """
import threading
from functools import partial
from ray import cloudpickle
import pipeline.flow.drive as drive
from pipeline.flow.embed import run_flow
from pipeline.flow.stages import EncodeStage

class Hanging(EncodeStage):
    def __call__(self, batch):
        threading.Event().wait()

class Slow(EncodeStage):
    def __init__(self, context, num_threads):
        super().__init__(context, num_threads)
        forward = self._encoder._forward
        def slowly(ids, mask):
            threading.Event().wait(1.0)
            return forward(ids, mask)
        self._encoder._forward = slowly

drive.STALL_S = {stall_s}
drive.run_flow = partial(run_flow, encode_stage={stage})
run()
"""


def make_job(folder: Path, model: Path) -> Job:
    job = Job.local(folder, model, encoder={"token_budget": 64})
    put_files(job.corpus, {"a.parquet": make_rows(40)})
    return job


def test_a_run_in_which_nothing_moves_ends_and_can_go_on(tmp_path: Path, tiny_model: Path) -> None:
    job = make_job(tmp_path, tiny_model)
    [(code, out, sentence)] = run_script(job, _STAGES.format(stage="Hanging", stall_s=30))
    assert (code, out) == (75, ""), sentence
    assert sentence.startswith("vecmill: nothing moved for 30 s")
    assert "run the same command again" in sentence
    [(code, out, sentence)] = run_script(job, "run()")
    assert code == 0, sentence
    assert json.loads(out)["embedded"] == 40


def test_a_split_that_takes_longer_than_that_goes_on(tmp_path: Path, tiny_model: Path) -> None:
    """One split, of some 30 passes of a second each."""
    job = make_job(tmp_path, tiny_model)
    [(code, out, sentence)] = run_script(job, _STAGES.format(stage="Slow", stall_s=20))
    assert code == 0, sentence
    assert json.loads(out)["embedded"] == 40
