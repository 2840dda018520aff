"""YAML and `key.path=value` overrides -> a config. Mistakes are told in words of the config, never with a secret."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.config.sections import Config, redact_uri
from pipeline.errors import ConfigError


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The config in a YAML file, with `key.path=value` overrides applied.

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown, a value is wrong.
        NotSupportedError: a key or value that this version does not do.
    """
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"config not found: {path}; configs/local.yaml is one to start from") from None
    except IsADirectoryError:
        raise ConfigError(f"config is a folder: {path}; give the YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config cannot be read: {path}: {error}") from None
    except yaml.YAMLError as error:
        # Not the error's own text: it quotes the line, which may hold a secret.
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(
            f"config is not YAML: {path}{where}: {getattr(error, 'problem', None) or 'unreadable'}"
        ) from None
    if not isinstance(raw, dict):
        raise ConfigError(
            f"config must be a mapping of sections (input, store, ...): {path} holds {type(raw).__name__}"
        )
    for override in overrides:
        _override(raw, override)
    return parse_config(raw)


def parse_config(raw: Mapping[str, Any]) -> Config:
    """The config of a mapping as YAML gives it; errors as `load_config`."""
    for dotted, nearest in _unknown_keys(raw, Config):
        hint = f"; did you mean {nearest}?" if nearest else ""
        raise ConfigError(f"unknown config key: {dotted}{hint}")
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        # A union reports each of its members: one sentence a key.
        sentences = {_dotted(each["loc"]): _sentence(each) for each in reversed(error.errors())}
        raise ConfigError("; ".join(reversed(sentences.values()))) from None


def _override(raw: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    before, is_secret, _ = override.partition("storage_options")
    shown = f"{before}storage_options...=***" if is_secret else redact_uri(override)
    if not equals or not dotted:
        raise ConfigError(f"override must be key.path=value: {shown}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        if dotted != "input.text":
            raise ConfigError(f"override's value is not YAML: {shown}; quote it") from None
        value = None
    if dotted == "input.text" and not isinstance(value, str):
        value = text  # a template that was not quoted: its braces are a mapping to YAML, or nothing at all
    *sections, key = dotted.split(".")
    target = raw
    for section in sections:
        if target.get(section) is None:
            target[section] = {}
        if not isinstance(target[section], dict):
            raise ConfigError(f"override goes through {section}, which is a value, not a section: {shown}")
        target = target[section]
    target[key] = value


def _unknown_keys(raw: Mapping[str, Any], model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str | None]]:
    for key, value in raw.items():
        field = model.model_fields.get(str(key))
        if field is None:
            names = list(model.model_fields)
            nearest = difflib.get_close_matches(str(key), names, n=1, cutoff=0.5)
            yield (
                f"{prefix}{key}",
                f"{prefix}{nearest[0]}" if nearest else f"one of {', '.join(prefix + n for n in names)}",
            )
        elif isinstance(value, Mapping):
            for inner in (field.annotation, *get_args(field.annotation)):
                if isinstance(inner, type) and issubclass(inner, BaseModel):
                    yield from _unknown_keys(value, inner, f"{prefix}{key}.")


# What pydantic's messages say of its own types, in words of the config.
_EXPECTED = {
    "model_type": "must be a section, a mapping of keys",
    "tuple_type": "must be a list, such as [a, b]",
    "dict_type": "must be a mapping",
}
_UNIONS = {
    "input.uri": "must be a URI or a list of URIs",
    "cluster.encoders": "must be auto, a number, or {min: ..., max: ...}",
    "splits.max_rows": "must be auto or a number",
    "encoder.token_budget": "must be auto or a number",
    "index.nlist": "must be auto or a number",
}


def _dotted(loc: Sequence[Any]) -> str:
    """The config key of an error, without the members of unions that pydantic names behind it."""
    names: list[str] = []
    model: Any = Config
    for part in loc:
        field = model.model_fields.get(str(part)) if model is not None else None
        if field is None:
            break
        names.append(str(part))
        inner = (field.annotation, *get_args(field.annotation))
        model = next((each for each in inner if isinstance(each, type) and issubclass(each, BaseModel)), None)
    return ".".join(names) or ".".join(str(part) for part in loc)


def _sentence(error: Any) -> str:
    dotted = _dotted(error["loc"])
    if error["type"] == "missing":
        return f"config key missing: {dotted}; configs/local.yaml shows where it goes"
    value = error.get("input")
    shown = "***" if "storage_options" in dotted else repr(value) if not isinstance(value, Mapping) else "a mapping"
    expected = _UNIONS.get(dotted) or _EXPECTED.get(error["type"]) or error["msg"].lower()
    return f"{dotted}: {expected}, got {shown}"
