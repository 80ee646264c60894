"""Compiles portable MLIR to a .vmfb for one target, kept in a cache outside git."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from analysis.core import children
from analysis.core.errors import ModelError
from analysis.core.paths import cache_dir as default_cache_dir
from analysis.model.artifacts import ModelArtifacts, sha256

_FUNCTION = re.compile(r"^  func\.func @(\w+)\(")
_KEPT_LINES = 20


def compile_model(
    model: ModelArtifacts,
    *,
    batch_sizes: Sequence[int] | None = None,
    target: str = "llvm-cpu",
    cache_dir: Path | None = None,
    timeout_s: float = 600.0,
) -> Path:
    """Return a .vmfb of `model` for `target`, compiled now or found in the cache.

    A model with its own .vmfb is not compiled. Compiling takes about 8 s for each batch size, in a
    child process with the installed iree-base-compiler. A cached file that differs from its
    checksum is compiled again. `batch_sizes` are some of the exported ones (None: all). `target` is
    ``llvm-cpu`` (this machine's CPU) or an AMD GPU such as ``gfx942`` (also ``hip:gfx942``).
    `cache_dir` is by default `vmfb` in the project's cache.

    Raises ModelError if a batch size was not exported, the target is unknown, no compiler is
    installed, or the compiler fails or takes more than `timeout_s`; its last lines are kept.
    """
    if model.vmfb is not None:
        return model.vmfb
    assert model.mlir is not None
    flags = target_flags(target)
    sizes = _sizes(model, batch_sizes)
    text = select_functions(
        model.mlir.read_text(encoding="utf-8"),
        [f"{phase}_bs{size}" for phase in ("prefill", "decode") for size in sizes],
        model.mlir,
    )
    directory = cache_dir if cache_dir is not None else default_cache_dir() / "vmfb"
    label = f"{target.removeprefix('hip:')}-bs{'_'.join(map(str, sizes))}"
    vmfb = directory / f"{label}-{cache_key(text, flags)}.vmfb"
    if _is_whole(vmfb):
        return vmfb
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _alone(directory, vmfb.stem):
            if not _is_whole(vmfb):
                _compile(text, flags, vmfb, timeout_s)
    except OSError as error:
        raise ModelError(
            f"The compiled model cannot be kept in {directory} ({error}); set CACHELAB_CACHE_DIR to"
            " a directory that can be written."
        ) from error
    return vmfb


def target_flags(target: str) -> tuple[str, ...]:
    """Return the compiler's flags for a target.

    Raises ModelError if the target is neither ``llvm-cpu`` nor an AMD GPU.
    """
    common = ("--iree-input-type=auto", "--iree-opt-const-eval=false")
    if target == "llvm-cpu":
        return (
            "--iree-hal-target-backends=llvm-cpu",
            "--iree-llvmcpu-target-cpu=host",
            *common,
        )
    chip = target.removeprefix("hip:")
    if re.fullmatch(r"gfx[0-9a-f]+(-[a-z]+)*", chip):
        return ("--iree-hal-target-backends=rocm", f"--iree-hip-target={chip}", *common)
    raise ModelError(
        f"There is no target {target!r}; use llvm-cpu, or an AMD GPU by its name such as gfx942."
    )


def select_functions(mlir: str, names: Sequence[str], where: Path) -> str:
    """Remove all top-level functions of a text MLIR module except the named ones.

    Raises ModelError, with `where`, if one of them is missing.
    """
    kept: list[str] = []
    found: set[str] = set()
    dropping = False
    for line in mlir.splitlines(keepends=True):
        if match := _FUNCTION.match(line):
            dropping = match.group(1) not in names
            found.add(match.group(1))
        if not dropping:
            kept.append(line)
        if line.startswith("  }"):
            dropping = False
    if missing := sorted(set(names) - found):
        raise ModelError(
            f"{where} does not export {', '.join(missing)}; it exports "
            f"{', '.join(sorted(found)) or 'nothing'}."
        )
    return "".join(kept)


def cache_key(mlir: str, flags: Sequence[str]) -> str:
    """Name a compilation by its input, compiler version, flags and, for `host`, the CPU."""
    parts = [hashlib.sha256(mlir.encode()).hexdigest(), _compiler_version(), *flags]
    if any(flag.endswith("=host") for flag in flags):
        parts.append(_host_cpu())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:20]


def _sizes(model: ModelArtifacts, batch_sizes: Sequence[int] | None) -> tuple[int, ...]:
    exported = sorted({*model.config.prefill_batch_sizes, *model.config.decode_batch_sizes})
    wanted = sorted(set(batch_sizes)) if batch_sizes is not None else exported
    if not wanted or (unknown := [size for size in wanted if size not in exported]):
        raise ModelError(
            f"The model has no batch size {', '.join(map(str, unknown)) if wanted else 'none'}; it"
            f" was exported for {', '.join(map(str, exported))}."
        )
    return tuple(wanted)


def _compile(text: str, flags: Sequence[str], vmfb: Path, timeout_s: float) -> None:
    with children.scratch(".compiling", vmfb.parent) as scratch:
        source, made, output = (scratch / name for name in ("model.mlir", "model.vmfb", "output"))
        source.write_text(text, encoding="utf-8")
        command = children.until_we_end(_compiler(), source, *flags, "-o", made)
        try:
            failed = children.run(command, output, timeout_s)
        except subprocess.TimeoutExpired:
            raise ModelError(
                f"Compiling the model took longer than {timeout_s:g} s and was stopped; allow more "
                "time or ask for fewer batch sizes."
            ) from None
        if failed or not made.is_file():
            last = "\n".join(children.tail(output).strip().splitlines()[-_KEPT_LINES:])
            raise ModelError(
                f"iree-compile {_compiler_version()} failed on the model with exit status "
                f"{failed}; its last lines were:\n{last}"
            )
        sealed = scratch / "model.sha256"
        sealed.write_text(f"{sha256(made)}\n")
        os.replace(made, vmfb)
        os.replace(sealed, _seal(vmfb))


def _seal(vmfb: Path) -> Path:
    """Return the file beside a compiled model that has its checksum."""
    return vmfb.with_suffix(".sha256")


def _is_whole(vmfb: Path) -> bool:
    """Return whether a compiled model is present and unchanged since its compilation."""
    try:
        return _seal(vmfb).read_text().strip() == sha256(vmfb)
    except (OSError, ValueError):
        return False


@contextmanager
def _alone(directory: Path, stem: str) -> Iterator[None]:
    """Let one process compile while others wait; a killed process releases the lock."""
    with (directory / f".{stem}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _compiler() -> str:
    try:
        from iree.compiler.tools.binaries import find_tool

        return str(find_tool("iree-compile"))
    except Exception as error:
        raise ModelError(
            f"No IREE compiler is installed in this environment ({error}); install"
            " iree-base-compiler of the same version as shortfin."
        ) from None


def _compiler_version() -> str:
    try:
        return importlib.metadata.version("iree-base-compiler")
    except importlib.metadata.PackageNotFoundError:
        raise ModelError(
            "No IREE compiler is installed in this environment; install iree-base-compiler of the"
            " same version as shortfin."
        ) from None


def _host_cpu() -> str:
    """Name this CPU and its features, for caches on a shared disk."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    lines = [
        next((line for line in text.splitlines() if line.startswith(key)), "")
        for key in ("model name", "flags")
    ]
    return " ".join([platform.machine(), *lines])
