"""Labelled data as it is published: BEIR folders and files of sentence pairs."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from pipeline.errors import InputError

Qrels = dict[str, dict[str, int]]
"""Query id -> document id -> relevance."""


def read_qrels(path: Path) -> Qrels:
    """The relevances in a BEIR file: query-id, corpus-id, score, by tabs, with a header.

    Raises:
        InputError: the file is not there, or a line is not of that shape.
    """
    qrels: Qrels = {}
    for number, line in enumerate(_lines(path), 1):
        fields = line.split("\t")
        if number == 1 and fields[-1] == "score":
            continue
        try:
            query_id, doc_id, relevance = fields
            qrels.setdefault(query_id, {})[doc_id] = int(relevance)
        except ValueError:
            raise InputError(
                f"{path}:{number} is no relevance; a line is query-id, corpus-id, score, by tabs"
            ) from None
    if not qrels:
        raise InputError(f"no relevances in {path}")
    return qrels


def read_queries(path: Path, qrels: Qrels) -> dict[str, str]:
    """The texts of the queries that `qrels` judges, by id.

    Raises:
        InputError: the file is not there, a line is no query, or one that is judged is missing.
    """
    queries: dict[str, str] = {}
    for number, line in enumerate(_lines(path), 1):
        try:
            value = json.loads(line)
            queries[str(value["_id"])] = value["text"]
        except (json.JSONDecodeError, KeyError, TypeError):
            raise InputError(f'{path}:{number} is no query; a line is {{"_id": ..., "text": ...}}') from None
    missing = sorted(qrels.keys() - queries.keys())
    if missing:
        raise InputError(f"{len(missing)} queries are judged and not in {path}, the first: {missing[0]}")
    return {query_id: queries[query_id] for query_id in qrels}


def read_corpus(path: Path) -> dict[str, str]:
    """The texts of a corpus by id: title and text, as BEIR and MTEB join them.

    Raises:
        InputError: the file is not there, or a line is no document.
    """
    texts: dict[str, str] = {}
    for number, line in enumerate(_lines(path), 1):
        try:
            value = json.loads(line)
            texts[str(value["_id"])] = f"{value['title']} {value['text']}"
        except (json.JSONDecodeError, KeyError, TypeError):
            raise InputError(
                f'{path}:{number} is no document; a line is {{"_id": ..., "title": ..., "text": ...}}'
            ) from None
    return texts


def read_pairs(path: Path) -> tuple[list[str], list[str], list[float]]:
    """Sentences, sentences and scores of a CSV file without header.

    Raises:
        InputError: the file is not there, or a row is not of that shape.
    """
    firsts, seconds, scores = [], [], []
    for number, row in enumerate(csv.reader(_lines(path)), 1):
        try:
            first, second, score = row
            scores.append(float(score))
        except ValueError:
            raise InputError(f"{path}:{number} is no pair; a row is sentence1,sentence2,score") from None
        firsts.append(first)
        seconds.append(second)
    if len(scores) < 2:
        raise InputError(f"a rank correlation needs two pairs, {path} has {len(scores)}")
    return firsts, seconds, scores


def _lines(path: Path) -> list[str]:
    try:
        # Not splitlines(): a sentence may hold U+2028, which is a line's end for Python alone.
        return [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {path}: {error}") from None
