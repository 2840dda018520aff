"""The encoder as `mteb` takes it: any of its tasks, through the tokenizer and the encoder of the flow.

    import mteb
    from jobs.mteb_encoder import VecmillEncoder

    mteb.evaluate(VecmillEncoder("sentence-transformers/all-MiniLM-L6-v2"), mteb.get_tasks(["SciFact"]))

mteb knows an encoder by its methods (`mteb.models.EncoderProtocol`), so that nothing of it is imported
before it asks for the model's description. It is not among our own dependencies: `pip install mteb`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from jobs.evaluate.vectors import tokenize_texts
from pipeline.config import EncoderSettings
from pipeline.encoder import Encoder
from pipeline.errors import InputError
from pipeline.model import describe_model, fetch_model
from pipeline.tokens import load_tokenizer

Vectors = npt.NDArray[np.float32]


class VecmillEncoder:
    """Encodes what mteb's tasks hand out; documents with the document prompt, queries with the query prompt.

    Args:
        model_name: a folder or a hub id.
        revision: of a hub id.
        device: as torch names it; None takes a GPU if there is one.
        settings: other keys of the config's encoder section, such as compute="float32".

    Raises:
        ModelError, ConfigError: as `vecmill embed`.
    """

    def __init__(
        self, model_name: str, revision: str | None = None, *, device: str | None = None, **settings: Any
    ) -> None:
        self.settings = EncoderSettings(model=model_name, revision=revision, **settings)
        path = fetch_model(self.settings, None)
        self._name = model_name
        self._model = describe_model(path, self.settings)
        self._tokenizer = load_tokenizer(path, self._model)
        self._encoder = Encoder(
            path,
            self._model,
            compute=self.settings.compute,
            token_budget=self.settings.token_budget,
            device=device,
        )

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any = None,
        hf_split: str = "",
        hf_subset: str = "",
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> Vectors:
        """Unit vectors (N, D) of the texts of all batches, in their order.

        Args:
            inputs: batches, each with its texts under "text".
            prompt_type: mteb's PromptType; "query" takes the query prompt.
            task_metadata, hf_split, hf_subset, kwargs: of no use here; the batches are made by length.

        Raises:
            InputError: a text has no vector.
        """
        texts = [text for batch in inputs for text in batch["text"]]
        is_query = getattr(prompt_type, "value", prompt_type) == "query"
        ids = self._tokenizer.query_ids(texts) if is_query else tokenize_texts(texts, self._tokenizer)
        encoded = self._encoder.encode(ids)
        if encoded.invalid or encoded.failed:
            raise InputError(f"{len(encoded.invalid) + len(encoded.failed)} of {len(texts)} texts have no vector")
        return encoded.vectors

    def similarity(self, embeddings1: npt.ArrayLike, embeddings2: npt.ArrayLike) -> Vectors:
        """Cosines of all with all, (N, M): of unit vectors the inner products."""
        return np.atleast_2d(np.asarray(embeddings1, np.float32)) @ np.atleast_2d(np.asarray(embeddings2, np.float32)).T

    def similarity_pairwise(self, embeddings1: npt.ArrayLike, embeddings2: npt.ArrayLike) -> Vectors:
        """Cosines of each with its counterpart, (N,)."""
        first, second = (np.atleast_2d(np.asarray(each, np.float32)) for each in (embeddings1, embeddings2))
        cosines: Vectors = np.einsum("nd,nd->n", first, second)
        return cosines

    @property
    def mteb_model_meta(self) -> Any:
        """mteb's description of the model: what is known of it here, and nothing made up."""
        from mteb.models import ModelMeta

        unknown = (
            "release_date languages n_parameters memory_usage_mb license open_weights public_training_code "
            "public_training_data training_datasets"
        )
        organization = "" if "/" in self._name.strip("/") and not Path(self._name).is_dir() else "vecmill/"
        return ModelMeta(
            loader=None,
            name=f"{organization}{self._name if not organization else Path(self._name).name}",
            revision=self.settings.revision or "local",
            max_tokens=self._model.max_tokens,
            embed_dim=self._model.dim,
            framework=["PyTorch"],
            similarity_fn_name="cosine",
            use_instructions=bool(self._model.prompt or self._model.query_prompt),
            **dict.fromkeys(unknown.split()),
        )
