"""A fair race: the same texts for all, ratios within a round, a ceiling that is one, and nobody missing in silence."""

from __future__ import annotations

import json
import os
import random
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner, Result
from transformers.utils import logging as transformers_logging

from jobs import benchmark
from jobs.benchmark_peers import Unavailable, parse_peers
from jobs.cli import exit_code
from jobs.encoder_benchmark import PEERS, ceiling, contest, ours, peers, task, transformer
from jobs.encoder_benchmark.contest import compete
from jobs.encoder_benchmark.figures import figures_of, table_of
from jobs.encoder_benchmark.task import Contestant, Pass, Task, make_task, sample_texts, sorted_batches, trial_batches
from pipeline.config import EncoderSettings
from pipeline.errors import InputError, VecmillError
from tests.models import WORDS


def write_texts(folder: Path, texts: Sequence[str | None]) -> Path:
    folder.mkdir()
    half = len(texts) // 2
    for index, part in enumerate((texts[:half], texts[half:])):
        table = pa.table({"id": [str(row) for row in range(len(part))], "text": pa.array(part, pa.string())})
        pq.write_table(table, folder / f"{index}.parquet")
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """100 texts of 1 to 60 words, of which the tiny model takes 46."""
    chosen = random.Random(5)
    return write_texts(tmp_path / "corpus", [" ".join(chosen.choices(WORDS, k=1 + row % 60)) for row in range(100)])


@pytest.fixture
def tiny_task(corpus: Path, tiny: Path) -> Task:
    return make_task(corpus, 40, EncoderSettings(model=str(tiny)))


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In this process and a thread of it, with a ceiling that is no figure; what contestants set is put back."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setattr(contest, "new_host", lambda: ThreadPoolExecutor(1))
    monkeypatch.setattr(ceiling, "_CPU_ROWS", (64,))
    for module in (ceiling, ours, peers):  # threads would wait for one another on a busy machine
        monkeypatch.setattr(module, "num_cores", lambda: 1)
    for seconds in ("_SEARCH_S", "_LINEAR_S", "_ATTENTION_S"):
        monkeypatch.setattr(ceiling, seconds, 0.0)
    num_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(num_threads)


def run_encoder(*arguments: str | Path) -> Result:
    return CliRunner().invoke(benchmark.main, ["encoder", *map(str, arguments)])


def test_a_run_has_all_rows_and_skips_what_is_not_installed(
    corpus: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("openvino", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    result = run_encoder(corpus, f"encoder.model={tiny}", "--rounds", "1", "--documents", "40", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    rows = {row["name"]: row for row in found["rows"]}
    library = ["sentence-transformers", "sentence-transformers bfloat16", "sentence-transformers bfloat16, best batch"]
    assert list(rows) == [
        *("ours float32", "ours", "ours with tokenizing", "products alone"),
        *library,
        *("OpenVINO", "onnxruntime"),
    ]
    for name, package in (("OpenVINO", "openvino"), ("onnxruntime", "onnxruntime")):
        assert rows[name]["skipped"] == f"{package} is not installed: pip install 'vecmill[bench]'"
    assert found["first_peer"] == "sentence-transformers"
    assert (found["texts"], found["rounds"], found["max_tokens"]) == (40, 1, 48)
    for name in library:  # of the same texts, truncated alike, in the same order: random texts are nowhere near
        assert rows[name]["cosine_min"] > 0.99, name
    assert rows["sentence-transformers"]["cosine_min"] > 0.999999
    assert rows["ours"]["padding_ratio"] >= 1
    assert all(row["of_ceiling"]["median"] > 0 for row in rows.values() if "skipped" not in row)


def test_what_libraries_print_is_no_part_of_the_answer(capfd: pytest.CaptureFixture[str]) -> None:
    stdout, verbosity = os.dup(1), transformers_logging.get_verbosity()
    try:
        with warnings.catch_warnings():
            contest._quiet()
            os.write(1, b"chatter")
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    captured = capfd.readouterr()
    assert "chatter" not in captured.out
    assert "chatter" in captured.err


def test_texts_are_spread_over_the_corpus_and_none_counts_twice(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(10)]
    folder = write_texts(tmp_path / "corpus", [*texts, *texts, "", " ", None])
    assert sample_texts(folder, 5) == texts[::2]
    assert sample_texts(folder, 1_000) == texts


@pytest.mark.parametrize("texts", [[], ["", None]])
def test_a_corpus_without_texts_is_refused(texts: list[str | None], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no text in "):
        sample_texts(write_texts(tmp_path / "corpus", texts), 5)


def test_mistakes_of_usage(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(benchmark.main, ["encoder", str(tmp_path / "nowhere")]) == 2
    assert "no Parquet files with columns text" in capsys.readouterr().err
    assert exit_code(benchmark.main, ["encoder", str(corpus), "--peers", "openvino,tei"]) == 2
    assert "no such peer: tei" in capsys.readouterr().err
    assert exit_code(benchmark.main, ["encoder", str(corpus), "encoder.overlong=chunk"]) == 2
    assert "the peers truncate" in capsys.readouterr().err
    assert parse_peers(" onnxruntime, openvino,", PEERS) == ["openvino", "onnxruntime"]
    assert parse_peers("", PEERS) == []


def test_a_trial_is_padded_as_a_pass_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole batches of the full order, from all over it, of about the tokens that a trial may have."""
    monkeypatch.setattr(task, "_TRIAL_TOKENS", 1_000)
    lengths = np.random.default_rng(1).integers(2, 200, 300)
    batches = [batch.tolist() for batch in sorted_batches(lengths, 8)]
    assert sorted(chain.from_iterable(batches)) == list(range(300))
    tried = trial_batches(lengths, 8)
    assert all(batch.tolist() in batches for batch in tried)
    assert 900 < sum(lengths[batch].sum() for batch in tried) < 1_900
    assert sum(lengths[batch].sum() for batch in trial_batches(lengths, 300)) == lengths.sum()


# The tiny model has 2 layers of 4 Linears of 32 x 32, one of 64 x 32, one of 32 x 64, and a pooler nobody needs.


def test_flops_are_those_of_a_hand_count(tiny_task: Task) -> None:
    lengths = np.array([7, 48, 3])
    found = transformer.count_flops(transformer.shape_module(tiny_task), lengths)
    assert found.linear == 58 * 2 * 2 * (4 * 32 * 32 + 2 * 32 * 64)
    # Queries with keys, and weights with values: two products of L x L x 32 over all heads.
    assert found.attention == (7**2 + 48**2 + 3**2) * 2 * 2 * (2 * 32)


def test_the_ceiling_does_the_products_that_are_counted(tiny_task: Task) -> None:
    module = transformer.shape_module(tiny_task)
    shapes = ceiling.linear_shapes(module)
    assert sorted(shapes) == sorted([(32, 32)] * 8 + [(64, 32)] * 2 + [(32, 64)] * 2)
    kind = ceiling._Kind(torch.device("cpu"), torch.float32)
    counted = transformer.count_flops(module, np.array([32, 32, 32]))
    [linear] = ceiling.linear_products(kind, shapes, 96)
    assert linear.flops == counted.linear
    for product in ceiling.attention_products(kind, module.config, 96, 32):  # of one layer, for three texts
        assert product.flops * 2 == counted.attention
        with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
            product.run()
        if "matmul" in product.told:
            assert counter.get_total_flops() == product.flops


def test_exported_models_are_padded_masked_and_pooled(tiny_task: Task) -> None:
    """The same module behind the peers' door makes our vectors, whatever the batches."""
    module = transformer.load_module(tiny_task, torch.float32)

    def infer(inputs: Iterable[peers.Padded]) -> Iterator[peers.Inferred]:
        for ids, mask in inputs:
            hidden = module(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).last_hidden_state
            yield hidden.numpy(), mask

    found = peers.encode_exported(tiny_task, sorted_batches(tiny_task.lengths, 7), infer)
    [float32] = ours.reference(tiny_task)
    vectors = float32.run().vectors
    assert vectors is not None
    assert np.abs(found - vectors).max() < 1e-5


class _Request:
    """Answers with its ids, which it forgets when it starts again."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def start_async(self, inputs: list[Any]) -> None:
        self.data = inputs[0].copy()
        self.log.append("start")

    def wait(self) -> None:
        self.log.append("wait")

    def get_output_tensor(self, index: int) -> Any:
        return self


def test_requests_work_at_the_same_time_and_answer_in_order() -> None:
    inputs = [(np.full((1, 2), number), np.ones((1, 2), np.int64)) for number in range(5)]
    log: list[str] = []
    infer = peers._asynchronous([_Request(log), _Request(log)])
    found = [int(hidden[0, 0]) for hidden, _ in infer(iter(inputs))]
    assert found == [0, 1, 2, 3, 4]
    assert log[:3] == ["start", "start", "wait"]


def contestant(name: str, passes: Sequence[Pass | Exception]) -> contest.Runtime:
    given = iter(passes)

    def run() -> Pass:
        done = next(given)
        if isinstance(done, Exception):
            raise done
        return done

    return lambda _: [Contestant(name, "as set", run)]


def one(seconds: float, vector: Sequence[float] = (1.0, 0.0)) -> Pass:
    return Pass(seconds, np.array([vector], np.float32))


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> dict[str, contest.Runtime]:
    """Three rounds of a machine in three moods, in each of which ours is the faster by another factor."""
    monkeypatch.setattr(
        contest,
        "_OURS",
        {
            "ours float32": contestant("ours float32", [one(4), one(40), one(2)]),
            "ours": contestant("ours", [Pass(1, np.array([[0.6, 0.8]], np.float32), 1_020), one(10), one(0.5)]),
            "products alone": contestant("products alone", [Pass(s, None, flops=10**12) for s in (0.5, 8, 0.2)]),
        },
    )
    found = {"slow": contestant("slow", [one(2, (2.0, 0.0)), one(60), one(2)])}
    monkeypatch.setattr(contest, "PEERS", {"slow": found})
    return found


def test_ratios_are_of_the_same_round(tiny_task: Task, made_up: dict[str, contest.Runtime]) -> None:
    figures = figures_of(compete(tiny_task, ["slow"], 3), 1_000)
    rows = {row["name"]: row for row in figures["rows"]}
    assert figures["first_peer"] == "slow"
    assert rows["ours"]["rounds"] == [1_000, 100, 2_000]
    assert rows["ours"]["tokens_per_s"] == {"median": 1_000, "q1": 550, "q3": 1_500}
    # Of the medians it would be 2.
    assert rows["slow"]["ours_to_it"] == {"median": 4, "q1": 3, "q3": 5}
    assert rows["ours"]["to_first_peer"]["median"] == 4
    assert rows["ours"]["of_ceiling"]["median"] == 0.5
    assert (rows["ours"]["cosine_mean"], rows["slow"]["cosine_min"]) == (pytest.approx(0.6), 1)
    lines = table_of(figures, 1_000).splitlines()
    assert " ".join(lines[2].split()) == "ours 1.0 [0.6 1.5] 4.00 1.00 [1.00 1.00] 50.0% 0.600000 0.60000 -"
    assert "x first: to slow" in lines
    assert "ceiling: 2.000 TFLOP/s, 1000.0 MFLOP a token" in lines
    assert "slow: as set" in lines


def test_a_peer_that_fails_is_skipped_with_its_reason(tiny_task: Task, made_up: dict[str, contest.Runtime]) -> None:
    def unable(_: Task) -> Iterable[Contestant]:
        raise Unavailable("needs a GPU")

    made_up |= {
        "late": contestant("late", [one(1), ValueError("shape\nand more"), one(1)]),
        "never": unable,
        "gone": contestant("gone", [BrokenProcessPool()]),
    }
    results = compete(tiny_task, ["slow"], 3)
    figures = figures_of(results, 1_000)
    skipped = {row["name"]: row["skipped"] for row in figures["rows"] if "skipped" in row}
    assert skipped["late"] == "ValueError: shape"
    assert skipped["never"] == "needs a GPU"
    assert set(skipped) == {"late", "never", "gone"}
    assert "never" + " " * 38 + "skipped: needs a GPU" in table_of(figures, 1_000)


class _DeadProcess(ThreadPoolExecutor):
    def submit(self, *_: Any, **__: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_exception(BrokenProcessPool())
        return future


def test_a_peers_process_that_dies_takes_nobody_with_it(
    tiny_task: Task, made_up: dict[str, contest.Runtime], monkeypatch: pytest.MonkeyPatch
) -> None:
    hosts: list[Executor] = [*(ThreadPoolExecutor(1) for _ in range(3)), _DeadProcess(1)]
    monkeypatch.setattr(contest, "new_host", lambda: hosts.pop(0))
    results = compete(tiny_task, ["slow"], 3)
    assert results[-1].skipped == "its process ended, perhaps for want of memory"
    assert figures_of(results, 1_000)["first_peer"] is None


def test_without_ours_there_is_no_comparison(
    tiny_task: Task, made_up: dict[str, contest.Runtime], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = contestant("ours", [one(1), ValueError("broken")])
    monkeypatch.setattr(contest, "_OURS", {**contest._OURS, "ours": broken})
    with pytest.raises(VecmillError, match="ours: ValueError: broken"):
        compete(tiny_task, [], 3)


def test_without_a_ceiling_there_are_no_shares(
    tiny_task: Task, made_up: dict[str, contest.Runtime], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unable(_: Task) -> Iterable[Contestant]:
        raise Unavailable("this architecture has no Linear modules to measure")

    monkeypatch.setattr(contest, "_OURS", {**contest._OURS, "products alone": unable})
    figures = figures_of(compete(tiny_task, [], 3), 1_000)
    assert figures["flops"] is None
    assert figures["first_peer"] is None
    assert "skipped: this architecture has no Linear" in table_of(figures, 1_000)
