"""The encoder: token batches through the model.

It works through one split at a time: token batches over the whole split (see
`pipeline.batching`), a forward pass each, pooling and norm in float32. Three things can go wrong
with a batch, and none costs another document:

* It does not fit into memory: it is halved and tried again, and the token budget learns, so that
  no later batch of this process is as large.
* It raises: it is bisected down to the sequences at fault, which are `failed`. A probe then
  tells a bad document from a broken encoder: if even the probe raises, nobody is blamed and the
  error is the caller's.
* It makes NaN, infinite or zero vectors: they are `invalid`.

A batch that ends the process is the caller's to find: `before` tells of each batch before it is
tried, and sequences in doubt go `alone`, after all others.

On a CPU each thread takes a batch of its own: many threads over one batch wait for each other at each
of its hundred and fifty operations, and where another process takes a core from one of them, they do
nearly nothing else.

Reduced precision is the plain one, the whole model in bfloat16 or float16: over 2,000 docstrings
cosine to float32 is 0.99996 on average and 0.9999 at worst, at three to four times the speed
(jobs/benchmark.md). Autocast is nearer (0.99999) and was faster in no run.

Padding stands on the right, whatever side the model's tokenizer pads on, and is masked: a text has
the positions it has alone. For a causal model no token sees what stands behind it, and rotary
positions are relative, so that this equals padding on the left; where positions are absolute
(gpt2), left padding would make a vector depend on its neighbours.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from pipeline.batching import token_batches
from pipeline.encoder.cpu import (
    RowsModel,
    can_pack,
    cpu_peak_bytes,
    is_stateless,
    keep_freed_memory,
    keep_little_code,
    pack_linears,
    step_attention,
    trim_memory,
)
from pipeline.encoder.faults import first_line, is_out_of_memory
from pipeline.encoder.flat import FlatModel, flattened, is_known
from pipeline.encoder.gpu import VarlenModel, can_flatten, fitting_budget, gpu_peak_bytes, to_device
from pipeline.encoder.head import Head
from pipeline.encoder.load import load_transformer
from pipeline.encoder.sequences import Sequences
from pipeline.errors import AcceleratorFault, EnvironmentFault, VecmillError
from pipeline.model import ModelDescription
from pipeline.parallel import num_cores
from pipeline.tokens import load_tokenizer

log = logging.getLogger(__name__)

Compute = Literal["float32", "bfloat16", "float16"]

# CPU: the middle of a flat optimum (jobs/benchmark.md). GPU: enough to fill one, at under 1 GiB of activations for
# models of 1024 dimensions.
_CPU_TOKEN_BUDGET = 4096
_GPU_TOKEN_BUDGET = 65_536

# On a CPU a pass costs some 5 ms beside its tokens: 3 % of 4,096, 6 % of 2,048. On a GPU that was not measured: there
# none ends early.
_CPU_MIN_TOKENS = 2048

# On a CPU: what a process holds beside its own rises by some 2 MB a pass; a trim costs as much as half a pass.
_PASSES_BETWEEN_TRIMS = 64

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class EncodedSplit:
    """The vectors of a split's sequences."""

    vectors: npt.NDArray[np.float32]
    """(N, D), unit norm; zero where `invalid` or `failed`."""
    num_padded_tokens: int
    """Tokens computed over, padding included, of passes that succeeded; equal sequences as if each were computed."""
    invalid: list[int]
    """Sequences whose vector is NaN, infinite or zero."""
    failed: dict[int, str]
    """Sequences that the model raised on, and what it said."""


class Encoder:
    """A model on a device.

    Args:
        path: the model's folder.
        description: of the same folder; the weights are checked against it.
        compute: "auto" is bfloat16 where the hardware has it (float16 on older GPUs), else float32.
        token_budget: most padded tokens (B x L) of a pass to begin with; "auto" by device.
        device: "cpu", "cuda", "cuda:1", ...; None takes a GPU if there is one.
        num_threads: of the CPU, for this whole process; None leaves torch's choice.

    Raises:
        ModelError: the files are not those described, or cannot be loaded.
    """

    def __init__(
        self,
        path: str | Path,
        description: ModelDescription,
        *,
        compute: Literal["auto"] | Compute = "auto",
        token_budget: Literal["auto"] | int = "auto",
        device: str | None = None,
        num_threads: int | None = None,
    ) -> None:
        if num_threads is not None:
            # A cluster may count more CPUs than a process may use.
            torch.set_num_threads(min(num_threads, num_cores()))
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.compute: Compute = best_compute(self.device) if compute == "auto" else compute
        auto_budget = _GPU_TOKEN_BUDGET if self.device.type == "cuda" else _CPU_TOKEN_BUDGET
        self.token_budget = auto_budget if token_budget == "auto" else token_budget
        """Only ever falls, when a batch does not fit into memory."""
        self.min_tokens = _CPU_MIN_TOKENS if self.device.type == "cpu" else None
        """Padded tokens from which on a batch is large enough to end before it pads (`pipeline.batching`)."""
        self.dim = description.dim
        self._pad_token_id = description.pad_token_id
        self._num_prompt_tokens = _num_prompt_tokens(path, description)
        self._num_skipped = 0  # at the beginning of each of the sequences that are being encoded
        dtype = _DTYPES[self.compute]
        self._model: Any = load_transformer(Path(path), description, dtype).to(self.device)
        self._num_passes = 1
        self._num_until_trim = _PASSES_BETWEEN_TRIMS
        if self.device.type == "cpu":
            keep_freed_memory()
            keep_little_code()
            if can_pack(dtype):
                pack_linears(self._model)
                step_attention(self._model)
            if is_stateless(self._model):
                self._num_passes = torch.get_num_threads()
        of_pass = 1 if self._num_passes > 1 else torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self._num_passes, "encoder", partial(torch.set_num_threads, of_pass))
        self._head = Head(Path(path), description, self.device)
        self._flat: FlatModel | None = None
        self._probe()
        if can_flatten(self._model, self.device):
            self._flat = flattened(self._model, VarlenModel, self._try_flat)
        elif self.device.type == "cpu" and can_pack(dtype) and is_known(self._model):
            self._flat = flattened(self._model, RowsModel, self._try_flat)
        if self.device.type == "cuda" and token_budget == "auto":
            self.token_budget = fitting_budget(self._forward, self.device, description.max_tokens, auto_budget)

    @property
    def peak_bytes(self) -> int:
        """The most memory so far: of the GPU; on a CPU of this process, with all that it has loaded."""
        return gpu_peak_bytes(self.device) if self.device.type == "cuda" else cpu_peak_bytes()

    def encode(
        self,
        input_ids: pa.ListArray | pa.ChunkedArray | Sequence[npt.ArrayLike],
        *,
        alone: Sequence[int] = (),
        before: Callable[[Sequence[int]], None] = lambda batch: None,
        in_turn: bool = False,
        queries: bool = False,
    ) -> EncodedSplit:
        """Encode sequences; the result is in their order, and no vector depends on its neighbours.

        Equal ones are computed once, unless `in_turn` or some go `alone`: then each is on trial for itself.

        Args:
            input_ids: N lists of token ids, as `pipeline.tokens` makes them.
            alone: indices of those that share no batch and come last.
            before: called with the indices of each batch before it is tried.
            in_turn: whether each batch is done before the next is begun, so that what ends the process is the batch
                that `before` told of last.
            queries: whether they have the query prompt; else they have the documents'.

        Raises:
            AcceleratorFault: the device broke over a batch; this process cannot use it any more.
            EnvironmentFault: the device, not a document, is out of memory.
        """
        self._num_skipped = self._num_prompt_tokens[queries]
        sequences = Sequences.of(input_ids)
        num = len(sequences.lengths)
        firsts, first_of = (np.arange(num),) * 2 if in_turn or alone else sequences.distinct()
        vectors = torch.zeros((num, self.dim), dtype=torch.float32, device=self.device)
        widths = np.zeros(num, np.int64)  # of the batch that each was in
        failed: dict[int, str] = {}
        pending = self._batches(sequences, np.setdiff1d(firsts, np.asarray(alone, np.int64)), in_turn=in_turn)
        pending = list(reversed([*pending, *(np.array([index]) for index in alone)]))
        for batch, outcome, was_alone in self._outcomes(sequences, pending, before, in_turn=in_turn):
            self._trim_at_times()
            longest = int(sequences.lengths[batch[0]])
            if isinstance(outcome, Tensor):
                vectors[torch.from_numpy(batch).to(self.device)] = outcome
                widths[batch] = longest
            elif len(batch) > 1:
                if outcome.out_of_memory:
                    self._learn(len(batch) * longest)
                half = len(batch) // 2
                pending += [batch[half:], batch[:half]]
            elif outcome.out_of_memory and not was_alone:
                self._num_passes = 1  # others may have had the memory: again, with none beside it
                pending.append(batch)
            else:
                self._probe()
                failed[int(batch[0])] = outcome.message
        found = vectors.cpu().numpy()[first_of]
        failed = {index: failed[first] for index, first in enumerate(first_of.tolist()) if first in failed}
        unsound = np.flatnonzero(~np.isclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-3))
        found[unsound] = 0.0
        invalid = [int(index) for index in unsound if int(index) not in failed]
        return EncodedSplit(found, int(widths[first_of].sum()), invalid, failed)

    def _batches(
        self, sequences: Sequences, which: npt.NDArray[np.int64], *, in_turn: bool
    ) -> list[npt.NDArray[np.int64]]:
        """These sequences in token batches, longest first."""
        lengths, budget = sequences.lengths[which], self.token_budget
        if self._num_passes > 1 and not in_turn:  # of a few sequences too each thread has its part
            budget = min(budget, -(-int(lengths.sum()) // self._num_passes))
        return [which[batch] for batch in token_batches(lengths, budget, min_tokens=self.min_tokens)]

    def _outcomes(
        self,
        sequences: Sequences,
        pending: list[npt.NDArray[np.int64]],
        before: Callable[[Sequence[int]], None],
        *,
        in_turn: bool,
    ) -> Iterator[tuple[npt.NDArray[np.int64], Tensor | _Problem, bool]]:
        """Each pending batch, from the last one on, with its vectors or why there are none; more may be added.

        The third says whether no other ran beside it.
        """
        running: deque[tuple[npt.NDArray[np.int64], Future[Tensor | _Problem], bool]] = deque()
        try:
            while pending or running:
                # One waits for each that runs.
                most = 1 if in_turn or self._num_passes == 1 else 2 * self._num_passes
                while pending and len(running) < most:
                    batch = pending.pop()
                    lengths = sequences.lengths[batch]
                    if len(batch) > 1 and len(batch) * int(lengths[0]) > self.token_budget:  # it has learnt since
                        pending.extend(batch[part] for part in reversed(token_batches(lengths, self.token_budget)))
                        continue
                    before(batch.tolist())
                    running.append((batch, self._pool.submit(self._try, sequences, batch), most == 1))
                batch, future, was_alone = running.popleft()
                yield batch, future.result(), was_alone
        finally:
            for _, future, _ in running:
                future.cancel()

    def _try(self, sequences: Sequences, batch: npt.NDArray[np.int64]) -> Tensor | _Problem:
        """The batch's vectors, or why there are none."""
        # The error is dropped before the next try: its traceback holds the tensors that did not fit.
        try:
            ids, mask = sequences.padded(batch, self._pad_token_id)
            return self._forward(ids, mask)
        except torch.AcceleratorError as error:
            raise AcceleratorFault(
                f"the accelerator {self.device} failed: {first_line(error)}; run it again"
            ) from error
        except Exception as error:
            longest = int(sequences.lengths[batch[0]])
            if is_out_of_memory(error):
                problem = _Problem(f"does not fit into memory, {longest} tokens alone", out_of_memory=True)
            else:
                problem = _Problem(f"{type(error).__name__}: {first_line(error)}", out_of_memory=False)
        if problem.out_of_memory and self.device.type == "cuda":
            torch.cuda.empty_cache()
        return problem

    @torch.inference_mode()
    def _forward(self, ids: npt.NDArray[np.int64], mask: npt.NDArray[np.bool_]) -> Tensor:
        """(B, L) ids and mask -> float32 (B, D) of unit norm."""
        real = to_device(mask, self.device)
        if self._flat is not None:
            hidden = self._flat(ids, mask, self.device)
        else:
            input_ids = to_device(ids, self.device)
            hidden = self._model(input_ids=input_ids, attention_mask=real.long()).last_hidden_state  # (B, L, H)
        return self._head(hidden, real, num_skipped=self._num_skipped)

    def _try_flat(self, flat: FlatModel | None, ids: npt.NDArray[np.int64], mask: npt.NDArray[np.bool_]) -> Tensor:
        self._flat = flat
        return self._forward(ids, mask)

    def _trim_at_times(self) -> None:
        self._num_until_trim -= 1
        if self._num_until_trim <= 0 and self.device.type == "cpu":
            trim_memory()
            self._num_until_trim = _PASSES_BETWEEN_TRIMS

    def _learn(self, num_tokens: int) -> None:
        self.token_budget = max(1, min(self.token_budget, num_tokens // 2))
        log.warning(
            "a batch of %d tokens does not fit into memory; token budget is now %d", num_tokens, self.token_budget
        )

    def _probe(self) -> None:
        """A pass over two tokens, which any sound encoder can do; raises if this one cannot."""
        try:
            shape = tuple(self._forward(np.full((1, 2), self._pad_token_id), np.ones((1, 2), bool)).shape)
        except Exception as error:
            if is_out_of_memory(error):
                raise EnvironmentFault(
                    f"{self.device} has no memory left for two tokens; free it and run again"
                ) from error
            raise VecmillError(
                f"the encoder fails on two tokens: {type(error).__name__}: {first_line(error)}"
            ) from error
        if shape != (1, self.dim):
            raise VecmillError(f"the model's vectors are {shape}, described as (1, {self.dim}). This is a bug.")


@dataclass(frozen=True)
class _Problem:
    message: str
    out_of_memory: bool


def best_compute(device: torch.device) -> Compute:
    """The fastest compute type that the device does in hardware and that keeps promise 5."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    capabilities = torch.cpu.get_capabilities()
    return "bfloat16" if capabilities.get("amx_bf16") or capabilities.get("avx512_bf16") else "float32"


def _num_prompt_tokens(path: str | Path, description: ModelDescription) -> dict[bool, int]:
    """Tokens of the prompt that pooling leaves out: of queries (True) and of documents (False)."""
    if description.include_prompt:
        return {False: 0, True: 0}
    tokenizer = load_tokenizer(path, description)
    return {
        False: tokenizer.num_prompt_tokens(description.prompt),
        True: tokenizer.num_prompt_tokens(description.query_prompt),
    }
