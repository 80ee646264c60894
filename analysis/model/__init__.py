"""The counting model: artifacts, compilation, tokenizer, reference decoder, verification, training.

Names are loaded when first used: importing this package imports neither torch, IREE nor shortfin.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.model.artifacts import ModelArtifacts, ModelConfig, load_model
    from analysis.model.compile import compile_model
    from analysis.model.reference import ReferenceDecoder, ReferenceSequence
    from analysis.model.tokenizer import ModelTokenizer

__all__ = [
    "ModelArtifacts",
    "ModelConfig",
    "ModelTokenizer",
    "ReferenceDecoder",
    "ReferenceSequence",
    "compile_model",
    "load_model",
]

_HOMES = {
    "ModelArtifacts": "artifacts",
    "ModelConfig": "artifacts",
    "ModelTokenizer": "tokenizer",
    "ReferenceDecoder": "reference",
    "ReferenceSequence": "reference",
    "compile_model": "compile",
    "load_model": "artifacts",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
