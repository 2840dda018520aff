"""modules.json and the folders it names: what happens to hidden states, module by module.

`modules.json` spells a type in more than one way (`sentence_transformers.models.Pooling` up to
version 5, `sentence_transformers.sentence_transformer.modules.pooling.Pooling` since); the class
name at the end is the same in all. Pooling's own config has two spellings as well. Built are
Transformer, Pooling, Dense, LayerNorm, Normalize, in any order in which sentence-transformers
(6.2) gives a vector; Dropout does nothing once a model is trained.

Before Pooling a module works on each token's vector, behind it on the text's. Names of inputs and
outputs that say anything else are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, cast, get_args

from pipeline.config import PoolingMode
from pipeline.errors import ModelError, NotSupportedError
from pipeline.model.files import digests, read_json, weight_files, weight_shapes
from pipeline.model.refusals import check_kind

# In the order in which several are concatenated.
_OLD_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# Of torch.nn: without weights, chance or a choice of dimension, and built without arguments.
_ACTIVATIONS = frozenset(
    (
        *("CELU", "ELU", "GELU", "Hardsigmoid", "Hardswish", "Hardtanh", "Identity", "LeakyReLU", "LogSigmoid", "Mish"),
        *("ReLU", "ReLU6", "SELU", "SiLU", "Sigmoid", "Softplus", "Softsign", "Tanh", "Tanhshrink"),
    )
)
_ACTIVATION = re.compile(r"torch\.nn\.(?:modules\.(?:activation|linear)\.)?(\w+)")
_BUILT = ("Transformer", "Pooling", "Dense", "LayerNorm", "Normalize", "Dropout")


class Module(NamedTuple):
    """An entry of modules.json, with the config.json of its folder."""

    kind: str
    folder: str
    """Relative to the model's; "" is the folder itself."""
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Layer:
    """A module with weights, other than the transformer."""

    kind: Literal["Dense", "LayerNorm"]
    folder: str
    """Relative to the model's."""
    in_dim: int
    out_dim: int
    activation: str
    """A class of torch.nn, called on what a Dense makes."""
    residual: bool
    """Whether a Dense adds its input."""
    weights: Mapping[str, str]
    """File name -> sha256."""


class Pooling(NamedTuple):
    """How the vectors of tokens become one."""

    modes: tuple[PoolingMode, ...]
    """One, or several whose vectors are joined in this order."""
    include_prompt: bool
    """Whether the prompt's tokens take part."""


def list_modules(path: Path, name: str) -> list[Module] | None:
    """The modules in order, checked to be kinds that are built; None if there is no modules.json."""
    listed = read_json(path / "modules.json", kind=list)
    if not listed:
        return None
    modules = []
    for entry in listed:
        spelling, folder = str(entry.get("type")), str(entry.get("path", ""))
        kind = spelling.rpartition(".")[2]
        if spelling.startswith("pylate."):
            check_kind("ColBERT", name)
        if not spelling.startswith("sentence_transformers."):
            raise ModelError(f"model {name} brings code of its own ({spelling}), and no code of a model is ever run")
        if PurePosixPath(folder).is_absolute() or ".." in PurePosixPath(folder).parts:
            raise ModelError(f"modules.json of {name} points outside the model: {folder}")
        check_kind(kind, name)
        if kind not in _BUILT:
            raise NotSupportedError(f"{kind} modules, as {name} has; {', '.join(_BUILT)} are")
        if kind != "Dropout":
            modules.append(
                Module(kind, folder, {} if kind == "Transformer" else read_json(path / folder / "config.json"))
            )
    _check_order(modules, name)
    return modules


def _check_order(modules: list[Module], name: str) -> None:
    kinds = [module.kind for module in modules]
    if not kinds or kinds[0] != "Transformer" or kinds.count("Transformer") > 1 or kinds.count("Pooling") > 1:
        raise NotSupportedError(f"modules in this order, as {name} has them: {', '.join(kinds)}")
    pooled = kinds.index("Pooling") if "Pooling" in kinds else None
    for place, module in enumerate(modules):
        if module.kind not in ("Dense", "LayerNorm", "Normalize"):
            continue
        own = module.config.get("module_input_name", "sentence_embedding")
        expected = "token_embeddings" if pooled is not None and place < pooled else "sentence_embedding"
        if own != expected or module.config.get("module_output_name") not in (None, own):
            wrote = module.config.get("module_output_name") or own
            raise NotSupportedError(
                f"{module.kind} from {own} to {wrote} as module {place} of {', '.join(kinds)}, as {name} has"
            )


def read_pooling(modules: list[Module], override: PoolingMode | None, name: str) -> Pooling | None:
    """The Pooling module's config, in either spelling, or `override`; None if there is neither."""
    own = next((module.config for module in modules if module.kind == "Pooling"), None)
    if own is None:
        return None if override is None else Pooling((override,), include_prompt=True)
    modes = own.get("pooling_mode") or [mode for key, mode in _OLD_POOLING.items() if own.get(key)] or "mean"
    modes = [modes] if isinstance(modes, str) else modes
    unknown = [mode for mode in modes if mode not in get_args(PoolingMode)]
    if unknown and override is None:
        raise NotSupportedError(f"pooling {' + '.join(map(str, unknown))}, as {name} has")
    chosen = modes if override is None else [override]
    return Pooling(cast("tuple[PoolingMode, ...]", tuple(chosen)), bool(own.get("include_prompt", True)))


def read_layers(
    path: Path, modules: list[Module], name: str, hidden_dim: int, num_modes: int
) -> tuple[list[Layer], int]:
    """Each Dense and LayerNorm in order, its weights seen to fit; and the dim of what comes out at the end.

    Args:
        path: the model's folder.
        modules: with their Pooling.
        name: the model's, for sentences.
        hidden_dim: of the transformer's output.
        num_modes: of pooling.
    """
    layers, dim = [], hidden_dim
    for module in modules:
        if module.kind == "Pooling":
            dim *= num_modes
        elif module.kind in ("Dense", "LayerNorm"):
            layer = _read_layer(path, module, name)
            if layer.in_dim != dim:
                raise ModelError(
                    f"{module.folder} of {name} takes {layer.in_dim} dimensions and is given {dim}; leave "
                    "encoder.pooling out, or fetch the model again"
                )
            layers.append(layer)
            dim = layer.out_dim
    return layers, dim


def _read_layer(path: Path, module: Module, name: str) -> Layer:
    config = module.config
    expected: dict[str, tuple[int, ...]]
    try:
        if module.kind == "LayerNorm":
            dim = int(config["dimension"])
            in_dim, out_dim, activation, residual = dim, dim, "Identity", False
            expected = {"norm.weight": (dim,), "norm.bias": (dim,)}
        else:
            in_dim, out_dim = int(config["in_features"]), int(config["out_features"])
            activation, residual = _activation(config, name), bool(config.get("use_residual"))
            expected = {"linear.weight": (out_dim, in_dim)}
            expected |= {"linear.bias": (out_dim,)} if config.get("bias", True) else {}
            expected |= {"residual.weight": (out_dim, in_dim)} if residual and in_dim != out_dim else {}
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{module.folder}/config.json of {name} is not whole: {error}; fetch it again") from None
    files = weight_files(path / module.folder, name)
    found = weight_shapes(path / module.folder, files)
    if found != expected:
        raise ModelError(f"weights in {module.folder} of {name} are {found}, and its config.json says {expected}")
    weights = digests(path / module.folder, files)
    kind = cast("Literal['Dense', 'LayerNorm']", module.kind)
    return Layer(kind, module.folder, in_dim, out_dim, activation, residual, weights)


def _activation(config: Mapping[str, Any], name: str) -> str:
    dotted = str(config.get("activation_function", "torch.nn.Tanh"))
    match = _ACTIVATION.fullmatch(dotted)
    if match is None or match[1] not in _ACTIVATIONS:
        raise NotSupportedError(f"the activation function {dotted} of a Dense module, as {name} has")
    return match[1]
