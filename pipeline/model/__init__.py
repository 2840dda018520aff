"""The model's folder: found or fetched, and described before any work. No torch is imported here.

fetch       a folder, an object-storage prefix or a hub id -> a folder of this machine
describe    a folder in sentence-transformers layout -> what it does to a text, and its fingerprint
    files       which files those are, and proof that they are the described ones
"""

from pipeline.model.describe import ModelDescription, PoolingMode, describe_model, encoder_fingerprint
from pipeline.model.fetch import cache_path, fetch_model
from pipeline.model.files import check_files

__all__ = [
    "ModelDescription",
    "PoolingMode",
    "cache_path",
    "check_files",
    "describe_model",
    "encoder_fingerprint",
    "fetch_model",
]
