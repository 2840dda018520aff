"""What follows the transformer: the model's own modules, from hidden states to vectors. Always in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.model import Layer, ModelDescription, check_files
from pipeline.pooling import normalize, pool

Step = Callable[[Tensor], Tensor]


class Head:
    """Pooling, with what comes before and behind it.

    Args:
        path: the model's folder.
        description: of the same folder; the weights are checked against it.
        device: where the weights go.

    Raises:
        ModelError: the files are not those described.
    """

    def __init__(self, path: Path, description: ModelDescription, device: torch.device) -> None:
        layers = iter(description.layers)
        steps: dict[str, list[Step]] = {"tokens": [], "vectors": []}
        over = "tokens"
        for kind in description.modules:
            if kind == "Pooling":
                over = "vectors"
            elif kind == "Normalize":
                steps[over].append(normalize)
            elif kind in ("Dense", "LayerNorm"):
                steps[over].append(_load_layer(path, next(layers), description.model, device))
        self._over_tokens, self._over_vectors = steps["tokens"], steps["vectors"]
        self._modes = description.pooling
        self._dim = description.dim

    def __call__(self, hidden: Tensor, mask: Tensor, *, num_skipped: int = 0) -> Tensor:
        """Vectors of unit norm.

        Args:
            hidden: last hidden states, (B, L, H), any floating dtype.
            mask: True at real tokens, (B, L).
            num_skipped: tokens at the beginning of each row that take no part in pooling.

        Returns:
            float32, (B, D), cut to the dims that are kept.
        """
        for step in self._over_tokens:
            hidden = step(hidden.float())
        pooled = [pool(hidden, mask, mode, num_skipped=num_skipped) for mode in self._modes]
        vectors = torch.cat(pooled, dim=-1)
        for step in self._over_vectors:
            vectors = step(vectors)
        return normalize(vectors[:, : self._dim])


def _load_layer(path: Path, layer: Layer, name: str, device: torch.device) -> Step:
    """A Dense or a LayerNorm, (..., in_dim) -> (..., out_dim)."""
    folder = path / layer.folder
    check_files(folder, layer.weights, name)
    weights: dict[str, Tensor] = {}
    for file in layer.weights:
        weights |= {key: tensor.float().to(device) for key, tensor in load_file(folder / file).items()}
    functional = torch.nn.functional
    if layer.kind == "LayerNorm":
        return lambda x: functional.layer_norm(x, (layer.out_dim,), weights["norm.weight"], weights["norm.bias"])
    activation = getattr(torch.nn, layer.activation)()
    linear, bias = weights["linear.weight"], weights.get("linear.bias")
    if not layer.residual:
        return lambda x: activation(functional.linear(x, linear, bias))
    other = weights.get("residual.weight")

    def with_residual(x: Tensor) -> Tensor:
        residual = x if other is None else functional.linear(x, other)
        added: Tensor = activation(functional.linear(x, linear, bias)) + residual
        return added

    return with_residual
