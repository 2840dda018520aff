"""The model's folder: found or fetched, and described before any work. No torch is imported here.

fetch       a folder, an object-storage prefix or a hub id -> a folder of this machine
describe    a folder -> what it does to a text, and its fingerprint
    modules     what follows the transformer: pooling, layers, their order
    refusals    what makes no single dense vector of a text, by name
    files       which files those are, and proof that they are the described ones
"""

from pipeline.model.describe import ModelDescription, describe_model, encoder_fingerprint
from pipeline.model.fetch import cache_path, fetch_model
from pipeline.model.files import check_files
from pipeline.model.modules import Layer
from pipeline.model.refusals import ENCODER_CLASSES

__all__ = [
    "ENCODER_CLASSES",
    "Layer",
    "ModelDescription",
    "cache_path",
    "check_files",
    "describe_model",
    "encoder_fingerprint",
    "fetch_model",
]
