"""What one would use instead, each at its best: sentence-transformers, OpenVINO, onnxruntime.

sentence-transformers tokenizes inside `encode`, and sorts by length itself. The other two are given the
token ids, sorted by length, and are pooled as the model says with `pipeline.pooling`; their model is the
transformers module, exported here in float32. OpenVINO then computes in bfloat16 by its precision hint.
Its int8 needs another package to calibrate (nncf) and is left out.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from jobs.benchmark_peers import Unavailable
from jobs.encoder_benchmark.task import (
    Batches,
    Contestant,
    Pass,
    Task,
    Vectors,
    fastest,
    sorted_batches,
    timed,
    trial_batches,
)
from jobs.encoder_benchmark.transformer import load_module
from pipeline.encoder import best_compute
from pipeline.parallel import num_cores
from pipeline.pooling import normalize, pool

_DEFAULT_SIZE = 32  # sentence-transformers' own
_LIBRARY_SIZES = (16, 32, 64, 128, 256)
_SIZES = (16, 32, 64, 128)

Padded = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
"""Ids padded on the right, and the mask of real tokens, both (B, L)."""
Inferred = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]
"""Hidden states (B, L, H), and the mask they came of."""
Infer = Callable[[Iterable[Padded]], Iterator[Inferred]]
"""In the same order."""


def library(task: Task) -> Iterator[Contestant]:
    """sentence-transformers as it comes: float32, batches of 32."""
    model = _load_library(task, None)
    yield _library("sentence-transformers", task, model, _DEFAULT_SIZE)


def library_reduced(task: Task) -> Iterator[Contestant]:
    """The same in reduced precision, as its users run it: float16 on a GPU, bfloat16 on a CPU."""
    dtype = "float16" if torch.cuda.is_available() else "bfloat16"
    model = _load_library(task, dtype)
    name = f"sentence-transformers {dtype}"
    yield _library(name, task, model, _DEFAULT_SIZE)
    size = fastest(
        _LIBRARY_SIZES, task.lengths, lambda size: size, lambda size, batches: _encode(task, model, size, batches)
    )
    yield _library(f"{name}, best batch", task, model, size)


def _load_library(task: Task, dtype: str | None) -> Any:
    # Ours forbids it: there are many readers on a node. A user of the library has all cores for it.
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    torch.set_num_threads(num_cores())
    found = import_module("sentence_transformers").SentenceTransformer(
        str(task.path), local_files_only=True, model_kwargs={} if dtype is None else {"dtype": dtype}
    )
    found.max_seq_length = task.model.max_tokens
    _encode(task, found, _DEFAULT_SIZE, trial_batches(task.lengths, _DEFAULT_SIZE))
    return found


def _library(name: str, task: Task, model: Any, size: int) -> Contestant:
    def run() -> Pass:
        return Pass(*timed(lambda: _encode(task, model, size, None)))

    return Contestant(name, f"batch {size}", run)


def _encode(task: Task, model: Any, size: int, batches: Batches | None) -> Vectors:
    texts = list(task.texts) if batches is None else [task.texts[index] for index in np.concatenate(batches)]
    vectors = model.encode(
        texts, batch_size=size, prompt=task.model.prompt, normalize_embeddings=True, show_progress_bar=False
    )
    return np.asarray(vectors, np.float32)


def openvino(task: Task) -> Iterator[Contestant]:
    """OpenVINO on the CPU: dynamic shapes, one stream over all cores or one a core."""
    ov: Any = import_module("openvino")
    example = _example()
    converted = ov.convert_model(_exported(task), example_input=example)
    precision = "f32" if best_compute(torch.device("cpu")) == "float32" else "bf16"

    def compiled(num_streams: int) -> Infer:
        hints = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": num_cores(),
            "NUM_STREAMS": num_streams,
        }
        model = ov.Core().compile_model(converted, "CPU", hints)
        # Two a stream: while one's result is pooled, the other is there to go on with.
        return _asynchronous([model.create_infer_request() for _ in range(2 * num_streams)])

    infers = {num_streams: compiled(num_streams) for num_streams in sorted({1, num_cores()})}
    num_streams, size = fastest(
        [(num_streams, size) for num_streams in infers for size in _SIZES],
        task.lengths,
        lambda candidate: candidate[1],
        lambda candidate, batches: encode_exported(task, batches, infers[candidate[0]]),
    )
    yield _sorted(f"OpenVINO {precision}", task, size, f", {num_streams} streams", infers[num_streams])


def _asynchronous(requests: list[Any]) -> Infer:
    """Requests in turn, all at work while there is work."""

    def infer(inputs: Iterable[Padded]) -> Iterator[Inferred]:
        idle, busy = list(requests), deque[tuple[Any, npt.NDArray[np.int64]]]()

        def oldest() -> Iterator[Inferred]:
            request, mask = busy.popleft()
            request.wait()
            yield request.get_output_tensor(0).data, mask  # a view: used before the request starts again
            idle.append(request)

        for ids, mask in inputs:
            if not idle:
                yield from oldest()
            request = idle.pop()
            request.start_async([ids, mask])
            busy.append((request, mask))
        while busy:
            yield from oldest()

    return infer


def onnxruntime(task: Task) -> Iterator[Contestant]:
    """onnxruntime on the CPU, in float32."""
    ort: Any = import_module("onnxruntime")
    any_size = torch.export.Dim.DYNAMIC
    with tempfile.TemporaryDirectory(prefix="vecmill-benchmark-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's, of itself
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            _exported(task),
            _example(),
            path,
            input_names=["input_ids", "attention_mask"],
            dynamic_shapes=({0: any_size, 1: any_size}, {0: any_size, 1: any_size}),
            dynamo=True,
            verbose=False,
        )
        options = ort.SessionOptions()
        options.intra_op_num_threads = num_cores()
        options.add_session_config_entry("session.force_spinning_stop", "1")  # its threads would wait on our cores
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def infer(inputs: Iterable[Padded]) -> Iterator[Inferred]:
        for ids, mask in inputs:
            yield session.run(None, {"input_ids": ids, "attention_mask": mask})[0], mask

    size = fastest(_SIZES, task.lengths, lambda size: size, lambda _, batches: encode_exported(task, batches, infer))
    yield _sorted("onnxruntime float32", task, size, "", infer)


def _example() -> tuple[torch.Tensor, torch.Tensor]:
    """With padding: of a mask of ones, tracing could conclude that none is needed."""
    mask = torch.ones(2, 8, dtype=torch.long)
    mask[1, 5:] = 0
    return torch.ones(2, 8, dtype=torch.long), mask


class _Hidden(torch.nn.Module):
    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return self.module(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def _exported(task: Task) -> torch.nn.Module:
    if torch.cuda.is_available():
        raise Unavailable("runs on the CPU, where ours runs on the GPU")
    if task.model.layers or not task.model.include_prompt:
        raise Unavailable("this model has more behind its transformer than pooling")
    # What torch does here is little, and its threads would wait on the cores of the others'.
    torch.set_num_threads(1)
    return _Hidden(load_module(task, torch.float32)).eval()


def _sorted(name: str, task: Task, size: int, told: str, infer: Infer) -> Contestant:
    def run() -> Pass:
        return Pass(*timed(lambda: encode_exported(task, sorted_batches(task.lengths, size), infer)))

    return Contestant(name, f"batch {size}{told}", run)


@torch.inference_mode()
def encode_exported(task: Task, batches: Batches, infer: Infer) -> Vectors:
    """Pad, infer, pool and normalize batches of the task; (N, D), zero where a text is in none."""
    vectors = np.zeros((len(task.texts), task.model.dim), np.float32)
    inputs = (_pad(task, batch) for batch in batches)
    for batch, (hidden, mask) in zip(batches, infer(inputs), strict=True):
        tokens, real = torch.from_numpy(hidden), torch.from_numpy(mask).bool()
        pooled = torch.cat([pool(tokens, real, mode) for mode in task.model.pooling], dim=-1)
        vectors[batch] = normalize(pooled[:, : task.model.dim]).numpy()
    return vectors


def _pad(task: Task, batch: npt.NDArray[np.int64]) -> Padded:
    offsets, values = task.input_ids.offsets.to_numpy(), task.input_ids.values.to_numpy()
    lengths = task.lengths[batch]
    ids = np.full((len(batch), int(lengths.max())), task.model.pad_token_id, np.int64)
    for row, index in enumerate(batch):
        ids[row, : lengths[row]] = values[offsets[index] : offsets[index + 1]]
    return ids, (np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64)
