"""The ceiling: the model's own matrix products alone, in the same type, at the best shapes and threads.

No norms, no softmax, no embeddings, no padding: nothing that computes these products on this machine is faster
than them. Products with weights run over as many rows as suits the machine. Those of attention are measured
apart, at the length that the corpus' tokens have on average, as two products or as torch's fused attention,
whichever is faster. What each attains in FLOP/s, and the FLOPs of the model over the corpus' real
tokens, give the seconds that a pass would take.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from jobs.benchmark_peers import Unavailable
from jobs.encoder_benchmark.task import Contestant, Pass, Task
from jobs.encoder_benchmark.transformer import count_flops, shape_module
from pipeline.encoder import best_compute
from pipeline.parallel import num_cores

CEILING = "products alone"

_CPU_ROWS = (1024, 2048, 4096, 8192)
_GPU_ROWS = (4096, 16_384, 65_536)
_SEARCH_S = 0.15
_LINEAR_S = 1.0
_ATTENTION_S = 0.3


@dataclass(frozen=True)
class Product:
    """Some products, and how to do them once."""

    told: str
    flops: int
    run: Callable[[], object]


@torch.inference_mode()
def ceiling(task: Task) -> Iterator[Contestant]:
    """Find the best shapes; what runs in the rounds is the best alone."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    compute = task.settings.compute if task.settings.compute != "auto" else best_compute(device)
    kind = _Kind(device, getattr(torch, compute))
    module = shape_module(task)
    flops = count_flops(module, task.lengths)
    linear = _best(kind, lambda rows: linear_products(kind, linear_shapes(module), rows))
    length = round(float((task.lengths**2).sum() / task.lengths.sum()))
    attention = _best(kind, lambda rows: attention_products(kind, module.config, rows, length))

    @torch.inference_mode()
    def run() -> Pass:
        seconds = flops.linear / _rate(kind, *linear, _LINEAR_S)
        seconds += flops.attention / _rate(kind, *attention, _ATTENTION_S)
        return Pass(seconds, None, flops=flops.linear + flops.attention)

    told = "; ".join(f"{product.told}, {num_threads} threads" for product, num_threads in (linear, attention))
    yield Contestant(CEILING, f"{compute}; {told}", run)


@dataclass(frozen=True)
class _Kind:
    device: torch.device
    dtype: torch.dtype

    def random(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, device=self.device).to(self.dtype)

    @property
    def rows(self) -> tuple[int, ...]:
        return _GPU_ROWS if self.device.type == "cuda" else _CPU_ROWS

    @property
    def threads(self) -> list[int]:
        """All cores first, then fewer by powers of two."""
        if self.device.type == "cuda":
            return [torch.get_num_threads()]
        cores = num_cores()
        return [cores, *(2**power for power in reversed(range((cores - 1).bit_length())))]


def linear_shapes(module: torch.nn.Module) -> list[tuple[int, int]]:
    """(out, in) of each Linear that a token goes through; not the pooler's.

    Raises:
        Unavailable: the model is made of something else.
    """
    shapes = [
        (linear.out_features, linear.in_features)
        for name, linear in module.named_modules()
        if isinstance(linear, torch.nn.Linear) and "pooler" not in name.split(".")
    ]
    if not shapes:
        raise Unavailable("this architecture has no Linear modules to measure")
    return shapes


def linear_products(kind: _Kind, shapes: list[tuple[int, int]], rows: int) -> Iterator[Product]:
    """(rows, in) x (in, out) for each shape, by each kernel that torch has for it."""
    inputs = {width: kind.random(rows, width) for _, width in shapes}
    weights = [kind.random(*shape) for shape in shapes]
    flops = sum(2 * rows * out * width for out, width in shapes)

    def plain() -> None:
        for weight in weights:
            torch.nn.functional.linear(inputs[weight.shape[1]], weight)

    yield Product(f"{rows} rows, linear", flops, plain)
    mkldnn_there = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if kind.device.type == "cpu" and kind.dtype == torch.bfloat16 and mkldnn_there:
        mkldnn: Any = torch.ops.mkldnn
        # What inductor freezes weights into: without it each call reorders them again.
        packed = [(shape[1], mkldnn._reorder_linear_weight(w, rows)) for shape, w in zip(shapes, weights, strict=True)]

        def prepacked() -> None:
            for width, weight in packed:
                mkldnn._linear_pointwise(inputs[width], weight, None, "none", [], "none")

        yield Product(f"{rows} rows, packed weights", flops, prepacked)


def attention_products(kind: _Kind, config: Any, rows: int, length: int) -> Iterator[Product]:
    """One layer's, over as many texts of this length as `rows` hold."""
    num_heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    num_texts = max(1, rows // length)
    q, k, v = (kind.random(num_texts, num_heads, length, head_dim) for _ in range(3))
    weights = kind.random(num_texts, num_heads, length, length)
    flops = 4 * num_texts * num_heads * length**2 * head_dim

    def two() -> None:
        torch.matmul(q, k.transpose(-1, -2))
        torch.matmul(weights, v)

    shape = f"attention {num_texts} x {length}"
    yield Product(f"{shape}, matmul", flops, two)
    yield Product(f"{shape}, fused", flops, lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v))


def _best(kind: _Kind, products: Callable[[int], Iterator[Product]]) -> tuple[Product, int]:
    """The fastest of all batch shapes on all cores, and how many threads are the fastest for it."""
    all_cores, *fewer = kind.threads
    rated = ((_rate(kind, product, all_cores, _SEARCH_S), product) for rows in kind.rows for product in products(rows))
    rate, product = max(rated, key=lambda found: found[0])
    rates = [(rate, all_cores), *((_rate(kind, product, num, _SEARCH_S), num) for num in fewer)]
    return product, max(rates)[1]


def _rate(kind: _Kind, product: Product, num_threads: int, seconds: float) -> float:
    """FLOP/s, after one run that is not counted."""
    if kind.device.type == "cpu":
        torch.set_num_threads(num_threads)
    product.run()
    _wait(kind.device)
    num, started = 0, time.perf_counter()
    while True:
        product.run()
        _wait(kind.device)
        num += 1
        elapsed = time.perf_counter() - started
        if elapsed >= seconds:
            return num * product.flops / elapsed


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
