"""Environments and Jupyter kernels of the releases.

Each release needs the IREE compiler and runtime of its own version, so every release has an
environment of its own. The default one is `.venv` at the root of the checkout, or the one that this
package was installed into; the others lie in `environments_dir` and are kernels of its Jupyter.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from analysis.core.errors import ReleaseError
from analysis.core.files import write_atomically
from analysis.core.paths import environments_dir, repo_root, shipped
from analysis.shortfin.releases import (
    KNOWN,
    PROBED,
    RELEASES,
    Release,
    installed_release,
    number_of,
    reported,
    row_of,
    supported,
)

INSTALL_TIMEOUT_S = 1800
_PROBE_TIMEOUT_S = 7200
# Other releases run kernels and trials; JupyterLab, papermill, nbconvert and imports of models run
# in the default one.
_ONLY_IN_DEFAULT = ("gguf", "jupyterlab", "nbconvert", "papermill", "uv")
_STAMP = "cachelab.lock"
"""In a complete environment: the lock file that it was made from."""
_DEFAULT = "default"
"""Beside the environments of an installed package: the path of its own interpreter."""


class UvError(ReleaseError):
    """`uv`, which makes environments and lock files, failed."""


@dataclass(frozen=True)
class Environment:
    """One release on this machine; `python` is None if it has no environment."""

    release: str
    python: Path | None
    locked: bool
    """A lock file for it ships with the package."""


def kernel_name(release: str) -> str:
    """Return the name of the Jupyter kernel in which `release` runs."""
    return f"shortfin-{release}"


def python_of(release: str) -> Path:
    """Return the interpreter of the environment of `release`.

    Raises ReleaseError if the release is unknown or has no environment.
    """
    row_of(release)
    for python in _candidates(release):
        if python.is_file():
            return python
    raise ReleaseError(
        f"shortfin {release} has no environment here: "
        f"make one with `cachelab releases install {release}`."
    )


def status() -> list[Environment]:
    """Return every known release with its environment, oldest first."""
    rows = []
    for release in KNOWN:
        python = next((p for p in _candidates(release) if p.is_file()), None)
        rows.append(Environment(release, python, _lock_file(release) is not None))
    return rows


def present() -> tuple[str, ...]:
    """Return the supported releases that have an environment here, oldest first."""
    return tuple(row.release for row in status() if row.python and row.release in supported())


def install(release: str) -> Path:
    """Make the environment of `release` from its lock, register its kernel, return its python.

    An environment counts as complete only when everything is in it. One that is there and was made
    from the same lock is left alone. Raises ReleaseError when it cannot be made.
    """
    row_of(release)
    check_platform()
    lock = _lock_file(release)
    if lock is None:
        have = ", ".join(r.release for r in status() if r.locked) or "none"
        make = f", or make it with `make lock RELEASES={release}`" if repo_root() else ""
        raise ReleaseError(
            f"No lock file for shortfin {release} ships with this package: choose among {have}"
            f"{make}."
        )
    try:
        return _make(release, lock)
    except UvError as error:
        raise ReleaseError(
            f"The environment of shortfin {release} was not made ({error}): check that the network"
            " reaches the package index, and run the same command again."
        ) from error
    except OSError as error:
        place = error.filename or environments_dir()
        raise ReleaseError(
            f"The environment of shortfin {release} cannot be made, as {place} cannot be used"
            f" ({error.strerror or error}): get the right to write there, or free its space."
        ) from error


def check_removable(release: str) -> Path:
    """Return the environment of `release`.

    Raises ReleaseError if it has none of its own, or is the one that this runs in.
    """
    row_of(release)
    home = environments_dir() / release
    if release == installed_release() or not home.is_dir():
        runs = release == installed_release()
        raise ReleaseError(
            f"shortfin {release} is the release of the environment that runs this command, so it"
            " is not removed: use another environment."
            if runs
            else f"shortfin {release} has no environment in {home.parent}, so nothing was removed."
        )
    return home


def remove(release: str) -> Path:
    """Remove the environment of `release` and its kernel, and return where it was.

    Raises ReleaseError as `check_removable` does.
    """
    home = check_removable(release)
    kernels = [place for place in _kernel_places(kernel_name(release)) if _is_kernel(place, home)]
    with _exclusively(home):
        home.with_name(f".ready-{release}").unlink(missing_ok=True)  # of the Makefile
        for directory in (*kernels, home):
            shutil.rmtree(directory)
    return home


def _is_kernel(place: Path, home: Path) -> bool:
    """Return whether a kernel spec runs the interpreter of an environment."""
    with suppress(OSError, ValueError, LookupError, TypeError):
        python = Path(json.loads((place / "kernel.json").read_text())["argv"][0])
        return python.parent == home / "bin"
    return False


def probe(release: str, like: str | None = None, tests: Sequence[str] = ()) -> int:
    """Run the tests of an engine on `release` as if it were `like`; return their exit status.

    `like` is a supported release (default: the nearest one); `tests` are files or directories below
    `tests` (default: all tests of an engine). The failed tests show the differences. A lock file
    and an environment are made if they are missing.

    Raises ReleaseError outside a checkout, and if the environment cannot be made.
    """
    root = repo_root()
    if root is None:
        raise ReleaseError("A release is probed in a checkout of the project: run this there.")
    like = like or _nearest(release)
    if like not in supported():
        raise ReleaseError(
            f"shortfin {like} is not supported. Use one of {', '.join(supported())}."
        )
    variables = {**os.environ, PROBED: f"{release}={like}", "CACHELAB_TEST_RELEASES": release}
    make = "import sys; from analysis.shortfin import environments as e; r = sys.argv[1]"
    for step in ("e._lock_file(r) or e.lock([r])", "e.install(r)"):
        done = subprocess.run([sys.executable, "-c", f"{make}; {step}", release],
                              env=variables, cwd=root, stderr=subprocess.PIPE, text=True,
                              timeout=2 * INSTALL_TIMEOUT_S)  # fmt: skip
        if done.returncode:
            why = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise ReleaseError(f"shortfin {release} cannot be probed: {why}")
    command = ["pytest", "-q", "--dist=loadfile", "-n2"]
    command += ["-m", "not slow and not hard and not browser"]
    command += [f"tests/{name}" for name in tests]
    try:
        return subprocess.run([sys.executable, "-m", *command], env=variables, cwd=root,
                              timeout=_PROBE_TIMEOUT_S).returncode  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ReleaseError(
            f"The tests did not end within {_PROBE_TIMEOUT_S} s: name fewer with `--tests`."
        ) from None


def _nearest(release: str) -> str:
    """Return the supported release before this one, or after it if there is none."""
    wanted = number_of(Release(release))
    others = [row for row in RELEASES if row.version in supported() and row.version != release]
    before = [row for row in others if number_of(row) < wanted]
    return before[-1].version if before else others[0].version


def _make(release: str, lock: Path) -> Path:
    home = environments_dir() / release
    if repo_root() is None and installed_release() == reported():
        write_atomically(home.with_name(_DEFAULT), sys.executable)
    if release == installed_release():
        register_kernel(release, Path(sys.executable))
        return Path(sys.executable)
    stamp = home / _STAMP
    if not (stamp.is_file() and stamp.read_bytes() == lock.read_bytes()):
        with _exclusively(home):
            _uv("venv", "--quiet", "--clear", "--python", sys.executable, str(home))
            _uv("pip", "install", "--quiet", "--python", str(home / "bin" / "python"),
                "--require-hashes", "-r", str(lock))  # fmt: skip
            site = sysconfig.get_path("purelib", "venv", {"base": str(home)})
            _make_importable(Path(site))
            shutil.copyfile(lock, stamp)
    python = home / "bin" / "python"
    register_kernel(release, python)
    return python


def _make_importable(site: Path) -> None:
    """Make this package importable in another environment, without a copy of it.

    Of an installed package only the package itself: what lies beside it is of another release.
    """
    if root := repo_root():
        (site / "cachelab.pth").write_text(f"{root}\n")
    else:
        package = Path(__file__).resolve().parents[1]
        (site / package.name).symlink_to(package)


def kernel_of(release: str) -> str:
    """Return the name of the kernel of `release`, which is registered on its first use.

    Raises ReleaseError if the release has no environment here.
    """
    python, name = python_of(release), kernel_name(release)
    for place in _kernel_places(name):
        with suppress(OSError, ValueError, LookupError, TypeError):
            there = Path(json.loads((place / "kernel.json").read_text())["argv"][0])
            if there.is_file() and there.parent.samefile(python.parent):
                return name
    register_kernel(release, python)
    return name


def register_kernel(release: str, python: Path) -> Path:
    """Write the kernel spec of `release`, and return its directory.

    It lies under this interpreter's prefix, or in the user's Jupyter directory if the prefix may
    not be written. Raises OSError if neither can be.
    """
    first, second = _kernel_places(kernel_name(release))
    try:
        return _write_kernel(first, release, python)
    except OSError:
        return _write_kernel(second, release, python)


def _kernel_places(name: str) -> tuple[Path, Path]:
    from jupyter_core.paths import jupyter_data_dir

    places = (Path(sys.prefix, "share", "jupyter"), Path(jupyter_data_dir()))
    return places[0] / "kernels" / name, places[1] / "kernels" / name


def _write_kernel(directory: Path, release: str, python: Path) -> Path:
    spec = {
        # -P: a folder next to the notebook must not shadow a package of the same name.
        "argv": [str(python), "-P", "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": f"shortfin {release}",
        "language": "python",
        # The user's site-packages must not be used in a pinned environment.
        "env": {"PYTHONNOUSERSITE": "1"},
        "metadata": {"debugger": True},
    }
    write_atomically(directory / "kernel.json", json.dumps(spec, indent=1))
    return directory


def check_platform() -> None:
    """Raise ReleaseError if this is not x86-64 Linux, for which shortfin has wheels."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        raise ReleaseError(
            f"shortfin has wheels for x86-64 Linux only, and this is {platform.machine()}"
            f" {platform.system()}: work on an x86-64 Linux machine."
        )


def lock(releases: Sequence[str]) -> None:
    """Compile environments/<release>.txt from pyproject.toml, with hashes, without index URL.

    `browser.txt`, which is installed beside the default release's, is compiled with that.
    """
    root = repo_root()
    if root is None:
        raise ReleaseError("Lock files are made in a checkout of the project: run this there.")
    for release in releases:
        row_of(release)
        pins = [f"{name}=={release}" for name in
                ("shortfin", "iree-base-compiler", "iree-base-runtime")]  # fmt: skip
        arguments = ["--group", "dev"]
        if release != reported():
            pins += [f"{name}; python_version < '3'" for name in _ONLY_IN_DEFAULT]
            arguments = []
        overrides = root / "environments" / f".overrides-{release}.txt"
        overrides.write_text("\n".join(pins) + "\n")
        try:
            _compile(root, release, "bootstrap", "--overrides", str(overrides), *arguments,
                     str(root / "pyproject.toml"))  # fmt: skip
        finally:
            overrides.unlink()
        if release == reported():
            _compile(root, "browser", release, "--group", "browser")


def _compile(root: Path, name: str, constraints: str, *arguments: str) -> None:
    folder = root / "environments"
    _uv("pip", "compile", "--quiet", "--universal", "--generate-hashes", "--no-header",
        "--no-annotate", "--python-version", "3.11",
        "--constraints", str(folder / f"{constraints}.txt"), *arguments,
        "-o", str(folder / f"{name}.txt"), cwd=root)  # fmt: skip


def _candidates(release: str) -> Iterator[Path]:
    if release == installed_release():
        yield Path(sys.executable)
    home = environments_dir() / release
    if release == reported():
        if root := repo_root():
            yield root / ".venv" / "bin" / "python"
        else:
            with suppress(OSError):
                yield Path(home.with_name(_DEFAULT).read_text())
    if (home / _STAMP).is_file():
        yield home / "bin" / "python"


def _lock_file(release: str) -> Path | None:
    path = shipped("environments") / f"{release}.txt"
    return path if path.is_file() else None


def _uv(*arguments: str, cwd: Path | None = None) -> None:
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.defpath]))
    if uv is None:
        raise ReleaseError(
            "`uv` is missing from this environment: add it with"
            f" `{sys.executable} -m pip install uv`."
        )
    environment = {**os.environ, "UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1"}
    environment.pop("VIRTUAL_ENV", None)
    try:
        subprocess.run([uv, *arguments], check=True, cwd=cwd, env=environment,
                       stderr=subprocess.PIPE, text=True, timeout=INSTALL_TIMEOUT_S)  # fmt: skip
    except subprocess.TimeoutExpired:
        raise UvError(f"`uv {arguments[0]}` did not end within {INSTALL_TIMEOUT_S} s") from None
    except subprocess.CalledProcessError as error:
        reason = " ".join(error.stderr.split())[-600:].rstrip(".")
        raise UvError(f"`uv {' '.join(arguments[:2])}` failed: {reason}") from None


@contextmanager
def _exclusively(home: Path) -> Iterator[None]:
    """Hold the lock to build `home`; a failed build leaves nothing that looks complete."""
    import fcntl

    home.parent.mkdir(parents=True, exist_ok=True)
    with open(home.parent / f".{home.name}.lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        (home / _STAMP).unlink(missing_ok=True)
        yield
