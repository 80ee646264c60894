"""The settings of an engine."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from analysis.core.errors import EngineError, is_deeper, shown, whole_number

PREFIX_SHARING = ("none", "trie")
DEVICES = ("auto", "local-task", "amdgpu")
PHASES = ("prefill", "decode")
MAX_PAGES, WHY_PAGES = 131_072, "all of them are allocated at the start"
"""With 16 tokens each these are 2 Mi tokens, about 4 GB with the counting model."""
MAX_BATCH, WHY_BATCH = 1024, "each batch size is compiled"
_DEEPEST = 16
"""Most nesting levels of an option, so that it can be written as JSON."""
LONGEST_TIMEOUT_S = 30 * 24 * 3600.0
"""30 days; a longer timeout is considered a typing error."""
_HIP_TARGET = re.compile(r"gfx[1-9][0-9a-f]{2,4}(-[a-z0-9]+)*")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """The settings of an engine.

    - `model`: directory of a model, or the name of an imported one; None: the counting model.
    - `device`: `auto` (`amdgpu` if a HIP device is found, else the CPU), `local-task` or `amdgpu`;
      `device_ids` are particular devices, `hip_target` the gfx target to compile for.
    - `prefix_sharing`: `none` or `trie`.
    - `page_count`: pages in the pool, of 16 tokens each with the counting model.
    - `batch_sizes`: batch sizes of prefill and decode.
    - `serialise_invocations`: one invocation at a time on each fiber, which prevents a freeze of
      3.3 to 3.9, but changes the timing.
    - `options`: passed by name to further parameters of the release (of its server, model and
      system manager), such as `prefill_batch_sizes`. `has_prefill_position` also chooses the
      model's program.

    Raises EngineError for values that are invalid for every release.
    """

    model: Path | None = None
    """Directory of a model, or the name of an imported one; None is the counting model."""
    device: str = "auto"
    """`auto` means `amdgpu` if a HIP device is found, else `local-task` (the CPU)."""
    device_ids: tuple[str, ...] = ()
    hip_target: str | None = None
    """The gfx target to compile for on `amdgpu`; None detects it."""
    prefix_sharing: str = "none"
    page_count: int = 256
    """Pages in the pool, 16 tokens each with the counting model."""
    batch_sizes: tuple[int, ...] = (4,)
    """Batch sizes of prefill and decode. The options `prefill_batch_sizes` and `decode_batch_sizes`
    make them unequal, which freezes 3.5 to 3.9.
    """
    serialise_invocations: bool = False
    """Whether to run one invocation at a time on each fiber. Prevents a freeze of 3.3 to 3.9, but
    changes the timing.
    """
    options: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.model is not None:
            if not isinstance(self.model, str | os.PathLike):
                raise EngineError(
                    "model must be a directory's path or an imported model's name, not"
                    f" {shown(self.model)}."
                )
            object.__setattr__(self, "model", Path(self.model))
        for name, of_what in (("device_ids", str), ("batch_sizes", int)):
            values = getattr(self, name)
            if isinstance(values, str) or not isinstance(values, Iterable):
                raise EngineError(f"{name} must be a list of values, not {shown(values)}.")
            values = tuple(values)
            if not all(isinstance(v, of_what) and not isinstance(v, bool) for v in values):
                kind = "texts" if of_what is str else "whole numbers"
                raise EngineError(f"{name} must have only {kind}, not {shown(list(values))}.")
            object.__setattr__(self, name, values)
        if self.prefix_sharing not in PREFIX_SHARING:
            raise EngineError(
                f"Unknown prefix_sharing {shown(self.prefix_sharing)}. Choose none or trie."
            )
        if self.device not in DEVICES:
            raise EngineError(
                f"Unknown device {shown(self.device)}. Choose from {', '.join(DEVICES)}, and give"
                " particular devices with device_ids."
            )
        if self.hip_target is not None and not (
            isinstance(self.hip_target, str) and _HIP_TARGET.fullmatch(self.hip_target)
        ):
            raise EngineError(
                f"hip_target {shown(self.hip_target)} is not a GPU target such as gfx942."
            )
        if not isinstance(self.options, Mapping) or not all(
            isinstance(name, str) for name in self.options
        ):
            raise EngineError(f"options must map names to values, not {shown(self.options)}.")
        for name, value in self.options.items():
            if is_deeper(value, _DEEPEST):
                raise EngineError(
                    f"The option {shown(name)} is nested more than {_DEEPEST} levels deep. Give a"
                    " flatter value."
                )
        whole_number(self.page_count, "page_count, the number of pages,", 1, MAX_PAGES,
                     why=WHY_PAGES)  # fmt: skip
        _check_batch_sizes(self.batch_sizes)
        for phase in PHASES:
            _check_batch_sizes(self.batch_sizes_of(phase))
        if "chunk_block_size" in self.options and not self.prefills_from_positions:
            raise EngineError(
                "Prefills in chunks start at positions: set the option has_prefill_position to"
                " true, too."
            )

    def batch_sizes_of(self, phase: str) -> list[int]:
        """Return the batch sizes of prefill or of decode."""
        sizes = self.options.get(f"{phase}_batch_sizes", self.batch_sizes)
        if isinstance(sizes, str) or not isinstance(sizes, Iterable):
            raise EngineError(f"{phase}_batch_sizes must be a list of numbers, not {shown(sizes)}.")
        return list(sizes)

    @property
    def prefills_from_positions(self) -> bool:
        """Whether the model's program is the one whose prefills take start positions."""
        return bool(self.options.get("has_prefill_position"))

    @property
    def compiled_batch_sizes(self) -> list[int]:
        """All batch sizes that the model is compiled for."""
        return sorted({size for phase in PHASES for size in self.batch_sizes_of(phase)})

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> EngineConfig:
        """Make a config from a JSON object with some of its settings."""
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(data) - known):
            raise EngineError(f"Unknown engine setting {unknown[0]!r}. Known are {sorted(known)}.")
        return cls(**data)  # type: ignore[arg-type]  # __post_init__ makes lists tuples again


def _check_batch_sizes(sizes: Sequence[object]) -> None:
    if not sizes:
        raise EngineError("Batch sizes are missing. Give at least one.")
    numbers = [whole_number(size, "A batch size", 1, MAX_BATCH, why=WHY_BATCH) for size in sizes]
    if numbers != sorted(set(numbers)):
        raise EngineError(
            f"Batch sizes {shown(numbers)} must be ascending without repeats, because the engine"
            " uses the first that fits."
        )
