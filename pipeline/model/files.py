"""The files of a model folder: which are its weights and its tokenizer, whole or not, and their digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pipeline.errors import ModelError

_VOCABULARIES = (
    *("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt"),
    *("sentencepiece.bpe.model", "spiece.model", "tokenizer.model", "unigram.json"),
)
_TOKENIZER_FILES = (*_VOCABULARIES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def check_files(folder: Path, digests: Mapping[str, str], name: str) -> None:
    """Raise ModelError unless the files of `folder` are the very ones that were described."""
    for file, digest in digests.items():
        if not (folder / file).is_file() or _sha256(folder / file) != digest:
            raise ModelError(
                f"model {name} is not the one that the run began with: {folder / file} differs on this node; "
                "let all nodes read one model, and pin a hub id with encoder.revision"
            )


def weight_files(folder: Path, name: str) -> list[str]:
    """The safetensors files that hold the weights, each seen to be readable; ModelError if there are none."""
    index = read_json(folder / "model.safetensors.index.json")
    whole = (folder / "model.safetensors").is_file()
    files = ["model.safetensors"] if whole else sorted(set(index.get("weight_map", {}).values()))
    if not files:
        pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
        only = f"only pickled ones ({', '.join(pickled[:3])})" if pickled else "none"
        raise ModelError(
            f"no safetensors weights in the model {name}: {folder} has {only}, and pickles are never read; "
            "load it with what made it and save it again with save_pretrained, which writes model.safetensors"
        )
    for file in files:
        if not (folder / file).is_file():
            raise ModelError(f"model {name} is not whole: {folder / file} is missing; fetch it again")
        try:
            with safe_open(str(folder / file), framework="np"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(f"weights cannot be read: {folder / file}: {error}; fetch the model again") from None
    return files


def weight_shapes(folder: Path, files: list[str]) -> dict[str, tuple[int, ...]]:
    """Name -> shape of each tensor in the safetensors files of `folder`."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        with safe_open(str(folder / file), framework="np") as tensors:
            shapes |= {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118
    return shapes


def tokenizer_files(folder: Path, name: str) -> list[str]:
    """The files that make the tokenizer; ModelError unless one of them is a vocabulary."""
    files = [file for file in _TOKENIZER_FILES if (folder / file).is_file()]
    if not set(_VOCABULARIES).intersection(files):
        raise ModelError(f"model {name} has no tokenizer: {folder} holds neither tokenizer.json nor a vocabulary")
    return files


def digests(folder: Path, files: list[str]) -> dict[str, str]:
    """File name -> sha256, of files in `folder`."""
    return {file: _sha256(folder / file) for file in files}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path, kind: type = dict) -> Any:
    """The JSON value of a file, empty if there is no such file; ModelError unless it is a `kind`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return kind()
    except (OSError, ValueError) as error:
        raise ModelError(f"model file cannot be read: {path}: {error}; fetch the model again") from None
    if not isinstance(value, kind):
        raise ModelError(f"model file is not what its name says: {path} holds {type(value).__name__}")
    return value
