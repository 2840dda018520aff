"""A model's own tokenizer: what transformers' AutoTokenizer makes of its files.

That is not always what `tokenizer.json` says: a class may rebuild it from the vocabulary and the
flags of tokenizer_config.json. But importing transformers imports torch: two seconds and 240 MiB
in every reader's process. So it is asked once per node, in a process of its own, and its answer is
kept in the cache; from then on a reader needs the tokenizers library alone, which starts in 30 ms.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock
from tokenizers import Tokenizer
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as NormalizerSequence

from pipeline.chunks import CHARS_PER_TOKEN, Chunker, chunker_rules
from pipeline.errors import ModelError, NotSupportedError, StorageFault
from pipeline.model import ModelDescription, cache_path, check_files
from pipeline.prefixes import squeezes

# Of a text that is truncated the first so many are encoded: more than most tokens have, for what is behind the last one
# settles that (pipeline.prefixes). The rare text that needs more is encoded again, by twice as many.
_PREFIX_CHARS_PER_TOKEN = 6

_RESOLVE = """
import sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], local_files_only=True, trust_remote_code=False)
with open(sys.argv[2], "w", encoding="utf-8") as file:
    file.write(tokenizer.backend_tokenizer.to_str())
"""


@dataclass(frozen=True)
class SequenceTokenizer:
    """A model's tokenizer with its prompts; truncates, never pads."""

    backend: Tokenizer
    """Truncates as the model does."""
    prompt: str
    query_prompt: str
    first_chars: int | None = None
    """Characters of a text that are encoded first; None: all, since the end of a text is what is kept."""
    squeezes: bool = False
    """See `pipeline.prefixes.squeezes`."""
    chunker: Chunker | None = None
    """Of the same backend; None: documents are truncated."""

    def query_ids(self, queries: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """Token ids of each query, with the query prompt."""
        encodings = self.backend.encode_batch([self.query_prompt + query for query in queries])
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def num_prompt_tokens(self, prompt: str) -> int:
        """Tokens of a sequence that are the prompt's, as sentence-transformers counts them: those of the prompt alone.

        A special token at its end does not count: it would come after the text.
        """
        if not prompt:
            return 0
        ids = self.backend.encode(prompt).ids
        special = {token for token, added in self.backend.get_added_tokens_decoder().items() if added.special}
        return len(ids) - (ids[-1] in special)


# By folder and by all of the description that a tokenizer depends on.
_loaded: dict[tuple[str, str], SequenceTokenizer] = {}


def load_tokenizer(path: str | Path, description: ModelDescription) -> SequenceTokenizer:
    """The tokenizer of the model folder at `path`; cached per process.

    Raises:
        ModelError: the files are not those described, or make no tokenizer.
        StorageFault: the cache folder cannot be written.
    """
    key = (str(path), json.dumps(description.spelled_out(""), sort_keys=True))
    if key not in _loaded:
        # Rayon would start a thread for each core of the node in each of the many readers on it.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        _loaded[key] = _load(Path(path) / description.transformer, description)
    return _loaded[key]


def _load(folder: Path, description: ModelDescription) -> SequenceTokenizer:
    check_files(folder, description.tokenizer, description.model)
    seen = [dict(description.tokenizer), description.config_digest, version("transformers"), version("tokenizers")]
    name = hashlib.blake2b(json.dumps(seen, sort_keys=True).encode(), digest_size=16).hexdigest()
    resolved = cache_path() / "tokenizers" / f"{name}.json"
    try:
        resolved.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{resolved}.lock"):
            if not resolved.is_file():
                _resolve(folder, resolved, description.model)
    except OSError as error:
        raise StorageFault(
            f"the tokenizer cannot be kept in {resolved.parent}: {error}; make room there, or set XDG_CACHE_HOME"
        ) from None
    backend = Tokenizer.from_file(str(resolved))
    if description.do_lower_case and not _lowers(backend.normalizer):
        rest = [] if backend.normalizer is None else [backend.normalizer]
        backend.normalizer = NormalizerSequence([Lowercase(), *rest])
    num_special = backend.num_special_tokens_to_add(False)
    if num_special >= description.max_tokens:
        raise ModelError(
            f"encoder.max_tokens: {description.max_tokens} leaves no room beside {num_special} special tokens"
        )
    backend.no_padding()
    backend.enable_truncation(description.max_tokens, direction=description.truncation_side)
    if any(backend.encode("a").type_ids):
        raise NotSupportedError(f"token types in single texts, as {description.model} has")
    first_chars = description.max_tokens * _PREFIX_CHARS_PER_TOKEN if description.truncation_side == "right" else None
    chunker = _chunker(backend, description, description.max_tokens - num_special)
    if chunker is not None:
        first_chars = chunker.max_tokens * CHARS_PER_TOKEN
    prompts = (description.prompt, description.query_prompt)
    return SequenceTokenizer(backend, *prompts, first_chars, squeezes(backend), chunker)


def _chunker(backend: Tokenizer, description: ModelDescription, room: int) -> Chunker | None:
    """What cuts long documents; `room` is what special tokens leave of a sequence."""
    rule = description.chunk
    if rule is None:
        return None
    if chunker_rules()["icu"] != rule["icu"]:
        raise ModelError(
            f"the ICU library is version {chunker_rules()['icu']} here, and documents are cut by version "
            f"{rule['icu']}; install the same icu4py everywhere"
        )
    num_prompt = len(backend.encode(description.prompt, add_special_tokens=False)) if description.prompt else 0
    most = room - num_prompt
    if most < 1:
        raise ModelError(f"encoder.prompt: its {num_prompt} tokens leave none of the {room} of a chunk for its text")
    tokens = most if rule["tokens"] is None else rule["tokens"]
    if tokens > most:
        raise ModelError(
            f"encoder.chunk.tokens: {tokens} is above the {most} that {description.model} takes beside the prompt "
            "and special tokens"
        )
    max_tokens = description.max_tokens - most + tokens
    return Chunker(backend, description.prompt, max_tokens, tokens, min(rule["overlap_tokens"], tokens // 2))


def _lowers(normalizer: Any) -> bool:
    if isinstance(normalizer, NormalizerSequence):
        return any(isinstance(normalizer[index], Lowercase) for index in range(len(normalizer)))
    return isinstance(normalizer, Lowercase)


def _resolve(folder: Path, resolved: Path, name: str) -> None:
    """Write what AutoTokenizer makes of `folder`, in one piece."""
    temporary = resolved.with_suffix(f".{os.getpid()}")
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", _RESOLVE, str(folder), str(temporary)],
        env={**os.environ, **offline},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        temporary.unlink(missing_ok=True)
        reason = (done.stderr.strip() or f"exit {done.returncode}").splitlines()[-1]
        raise ModelError(f"the tokenizer of {name} cannot be loaded from {folder}: {reason}")
    temporary.replace(resolved)
