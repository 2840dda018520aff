"""Documents -> token sequences: the model's own tokenizer (`load`), and what becomes of each document (`sequences`)."""

from pipeline.tokens.load import SequenceTokenizer, load_tokenizer
from pipeline.tokens.sequences import Tokenized, tokenize

__all__ = ["SequenceTokenizer", "Tokenized", "load_tokenizer", "tokenize"]
