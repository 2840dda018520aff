"""The transformer of a model folder, loaded from safetensors alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModel
from transformers.utils import logging as transformers_logging

from pipeline.encoder.faults import first_line, is_out_of_memory
from pipeline.errors import EnvironmentFault, ModelError
from pipeline.model import ENCODER_CLASSES, ModelDescription, check_files


def load_transformer(path: Path, description: ModelDescription, dtype: torch.dtype) -> torch.nn.Module:
    """The model without its heads; of an encoder-decoder, the encoder.

    Args:
        path: the model's folder.
        description: of the same folder; the weights are checked against it.
        dtype: of the weights, whatever the files hold.

    Raises:
        ModelError: the files are not those described, not whole, or cannot be loaded.
        EnvironmentFault: there is no memory for it.
    """
    folder = path / description.transformer
    check_files(folder, description.weights, description.model)
    try:
        with _quiet():
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            config.use_cache = False  # keys and values of a decoder, which nobody will ask for
            encoder_class = ENCODER_CLASSES.get(config.model_type)
            auto: Any = AutoModel if encoder_class is None else getattr(transformers, encoder_class)
            model, found = auto.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        if is_out_of_memory(error):
            raise EnvironmentFault(f"no memory to load {description.model}: {first_line(error)}") from error
        raise ModelError(f"model {description.model} cannot be loaded from {folder}: {first_line(error)}") from error
    # Transformers makes up random weights for those it misses; only the pooler's are never used.
    missing = sorted(key for key in found["missing_keys"] if "pooler" not in key)
    if missing:
        raise ModelError(
            f"weights of {description.model} are not whole: {', '.join(missing[:3])} missing; fetch it again"
        )
    loaded: torch.nn.Module = model.eval()
    return loaded


@contextmanager
def _quiet() -> Iterator[None]:
    """Weights that are not needed, such as a decoder's, are no news."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
