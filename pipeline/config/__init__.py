"""The config: frozen pydantic models, filled from YAML and `key.path=value` overrides.

Absent keys mean the default, which is good on a laptop and on a cluster. An unknown key is
refused with the nearest known one. What the design has and this version does not is refused
here, before any work, as "not supported yet: ...".

    sections   the models
    inputs     that of what is read
    load       YAML and overrides -> a Config
"""

from pipeline.config.inputs import Csv, Input
from pipeline.config.load import load_config, parse_config
from pipeline.config.sections import (
    AUTO_MAX_ROWS,
    MAX_SHARD_ROWS,
    ROW_FORMAT_VERSION,
    Chunk,
    Cluster,
    Config,
    EncoderSettings,
    Index,
    Limits,
    PoolingMode,
    PoolSize,
    SplitBounds,
    Store,
    redact_uri,
)

__all__ = [
    "AUTO_MAX_ROWS",
    "MAX_SHARD_ROWS",
    "ROW_FORMAT_VERSION",
    "Chunk",
    "Cluster",
    "Config",
    "Csv",
    "EncoderSettings",
    "Index",
    "Input",
    "Limits",
    "PoolSize",
    "PoolingMode",
    "SplitBounds",
    "Store",
    "load_config",
    "parse_config",
    "redact_uri",
]
