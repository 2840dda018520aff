"""Model families in miniature: tiny random weights, each with its own kind of tokenizer, made here."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from tests.models import write_json

POOLINGS: dict[str, str | list[str]] = {
    **{mode: mode for mode in ("cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")},
    "lasttoken + cls + mean": ["lasttoken", "cls", "mean"],
}
HIDDEN = 32
_MAX_TOKENS = 40
_SIZES: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
_BERT: dict[str, Any] = {
    **_SIZES,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}  # far from 0.02, so that texts differ
_VOCABULARY = 400


@functools.cache
def _corpus() -> list[str]:
    """Prose and code, as the interpreter has it."""
    paragraphs = "\n\n".join(topics[name] for name in sorted(topics)[:20]).split("\n\n")
    return [text for text in paragraphs if text.strip()][:300]


def make_texts() -> list[str]:
    """48 texts: short, long (truncated), and far from English."""
    odd = [
        "x",
        "ab" * 3000,
        "Ünïcödé: straße, ΑΒΓ",
        "北京 عربى",
        "🎉 emoji",
        "tabs\tand\n\nlines",
        "one </s> [SEP] <mask>",
    ]
    long = [" ".join(_corpus()[i : i + 4]) for i in range(7)]
    return [*odd, *_corpus()[20:50], *("many words, " * num for num in (2, 9, 30, 2000)), *long]


@functools.cache
def _trained(kind: str) -> Any:
    """The vocabulary of a tokenizer of this kind, trained on the corpus; of BPE, with its merges."""
    special: dict[str, Any] = {"vocab_size": _VOCABULARY, "show_progress": False}
    if kind == "WordPiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer: Any = trainers.WordPieceTrainer(special_tokens=["[UNK]"], **special)
    elif kind == "BPE":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **special)
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(special_tokens=["<unk>"], unk_token="<unk>", **special)
    tokenizer.train_from_iterator(_corpus(), trainer)
    made = json.loads(tokenizer.to_str())["model"]
    if kind == "BPE":
        return made["vocab"], [tuple(merge) for merge in made["merges"]]
    return made["vocab"]


def _words(*special: str) -> dict[str, int]:
    """A WordPiece vocabulary that begins with the special tokens."""
    return {piece: index for index, piece in enumerate(dict.fromkeys([*special, *_trained("WordPiece")]))}


def _bytes(*special: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A byte-level vocabulary that begins with the special tokens, and its merges."""
    vocabulary, merges = _trained("BPE")
    return {piece: index for index, piece in enumerate(dict.fromkeys([*special, *vocabulary]))}, merges


def _pieces(*special: str) -> list[tuple[str, float]]:
    """A SentencePiece (Unigram) vocabulary that begins with the special tokens."""
    return [*((piece, 0.0) for piece in special), *((p, score) for p, score in _trained("Unigram") if p not in special)]


def _transformers() -> Any:
    """Imported late, and of no type: its configs take their fields by names that it does not declare."""
    import transformers

    return transformers


def _save(path: Path, model: Any, tokenizer: Any) -> None:
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)


def _bert(path: Path) -> None:
    hf = _transformers()
    words = _words("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    _save(path, hf.BertModel(hf.BertConfig(vocab_size=len(words), **_BERT)), hf.BertTokenizer(vocab=words))


def _distilbert(path: Path) -> None:
    hf = _transformers()
    words = _words("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    config = hf.DistilBertConfig(
        vocab_size=len(words), dim=HIDDEN, hidden_dim=64, n_layers=2, n_heads=4, max_position_embeddings=64
    )
    config.initializer_range = 0.2
    _save(
        path,
        hf.DistilBertModel(config),
        hf.BertTokenizer(vocab=words, model_input_names=["input_ids", "attention_mask"]),
    )


def _roberta(path: Path) -> None:
    hf = _transformers()
    vocabulary, merges = _bytes("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    config = hf.RobertaConfig(vocab_size=len(vocabulary), type_vocab_size=1, **_BERT)
    _save(path, hf.RobertaModel(config), hf.RobertaTokenizer(vocab=vocabulary, merges=merges))


def _xlm_roberta(path: Path) -> None:
    hf = _transformers()
    pieces = [*_pieces("<s>", "<pad>", "</s>", "<unk>"), ("<mask>", 0.0)]
    config = hf.XLMRobertaConfig(vocab_size=len(pieces), type_vocab_size=1, **_BERT)
    _save(path, hf.XLMRobertaModel(config), hf.XLMRobertaTokenizer(vocab=pieces))


def _mpnet(path: Path) -> None:
    hf = _transformers()
    words = _words("<s>", "<pad>", "</s>", "[UNK]", "<mask>")
    _save(path, hf.MPNetModel(hf.MPNetConfig(vocab_size=len(words), **_BERT)), hf.MPNetTokenizer(vocab=words))


def _with_template(special: Sequence[str], template: str, **names: str) -> Any:
    """A byte-level tokenizer as a `tokenizer.json` alone, with the special tokens around a text in its template."""
    hf = _transformers()
    vocabulary, merges = _bytes(*special)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    used = [(token, vocabulary[token]) for token in special if token in template]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=used)
    inputs = ["input_ids", "attention_mask"]
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **names)


def _modernbert(path: Path) -> None:
    hf = _transformers()
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
    tokenizer = _with_template(special, "[CLS] $A [SEP]", **names, mask_token="[MASK]")
    config = hf.ModernBertConfig(
        **{**_BERT, "num_hidden_layers": 3},
        vocab_size=len(tokenizer),
        local_attention=8,  # so that padding lies far beyond what the last real tokens see
        global_attn_every_n_layers=2,
        pad_token_id=3,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
    )
    _save(path, hf.ModernBertModel(config), tokenizer)


def _t5(path: Path) -> None:
    """All of a T5, of which the encoder is to be used."""
    hf = _transformers()
    pieces = _pieces("<pad>", "</s>", "<unk>")
    config = hf.T5Config(
        vocab_size=len(pieces), d_model=HIDDEN, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    _save(path, hf.T5ForConditionalGeneration(config), hf.T5Tokenizer(vocab=pieces, extra_ids=0))


def _qwen3(path: Path) -> None:
    """As Qwen3-Embedding: causal, padded on the left, with an end token behind the text."""
    hf = _transformers()
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "padding_side": "left"}
    tokenizer = _with_template(["<|endoftext|>", "<|im_end|>"], "$A <|endoftext|>", **names)
    config = hf.Qwen3Config(
        **{**_SIZES, "max_position_embeddings": 128, "initializer_range": 0.2},
        vocab_size=len(tokenizer),
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=True,
    )
    _save(path, hf.Qwen3ForCausalLM(config), tokenizer)


def _eurobert(path: Path) -> None:
    """No token types, whatever its tokenizer makes of them."""
    hf = _transformers()
    words = _words("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    tokenizer = hf.BertTokenizer(vocab=words, model_input_names=["input_ids", "token_type_ids", "attention_mask"])
    config = hf.EuroBertConfig(
        **_BERT,
        vocab_size=len(words),
        num_key_value_heads=4,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        mask_token_id=4,
    )
    _save(path, hf.EuroBertModel(config), tokenizer)


FAMILIES: dict[str, Callable[[Path], None]] = {
    "BERT": _bert,
    "RoBERTa": _roberta,
    "DistilBERT": _distilbert,
    "XLM-R": _xlm_roberta,
    "MPNet": _mpnet,
    "ModernBERT": _modernbert,
    "T5 encoder": _t5,
    "Qwen3": _qwen3,
    "EuroBERT": _eurobert,
}


def make_family(path: Path, family: str) -> Path:
    """Save a tiny model of a family, with a mean Pooling; sequences end at 40 tokens, behind some of the texts."""
    import torch

    torch.manual_seed(7)
    FAMILIES[family](path)
    kinds = {"": "Transformer", "1_Pooling": "Pooling"}
    listed = [{"path": folder, "type": f"sentence_transformers.models.{kind}"} for folder, kind in kinds.items()]
    write_json(path / "modules.json", [{"idx": i, "name": str(i), **entry} for i, entry in enumerate(listed)])
    write_json(path / "sentence_bert_config.json", {"max_seq_length": _MAX_TOKENS, "do_lower_case": False})
    set_pooling(path, "mean")
    return path


def set_pooling(path: Path, modes: str | list[str], **more: Any) -> None:
    """Rewrite the Pooling module's config, in the new spelling."""
    write_json(path / "1_Pooling" / "config.json", {"embedding_dimension": HIDDEN, "pooling_mode": modes, **more})
