"""A sweep's plan: which trials there are, in which order, and what each of them is asked."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from analysis.core.errors import CachelabError, EngineError, seconds, shown, whole_number
from analysis.core.paths import place_of
from analysis.model.artifacts import model_directory
from analysis.shortfin import devices
from analysis.shortfin.config import (
    LONGEST_TIMEOUT_S,
    MAX_BATCH,
    MAX_PAGES,
    WHY_BATCH,
    WHY_PAGES,
    EngineConfig,
)
from analysis.shortfin.releases import row_of, supported
from analysis.workloads.named import WORKLOADS, in_turn, is_file
from analysis.workloads.workload import MAX_NEW_TOKENS, WHY_NEW_TOKENS

OBSERVED = {"nothing": "nothing", "events": "events", "snapshots": "events and snapshots"}
"""What a plan can record, and its name in the table `trials`."""
_BOUNDS = {
    "pages": (1, MAX_PAGES, WHY_PAGES),
    "concurrency": (1, 4096, "each client is a thread"),
    "batch_sizes": (1, MAX_BATCH, WHY_BATCH),
    "repeats": (1, 100_000, "each repeat is a fresh engine"),
    "max_new_tokens": (1, MAX_NEW_TOKENS, WHY_NEW_TOKENS),
    "rounds": (1, 1_000_000, "all prompts are kept in memory"),
    "seed": (0, 2**63 - 1, "it is stored as an integer of 64 bits"),
}
"""The least and the most of each number, and why there is a most."""
_LISTS = ("releases", "prefix_sharing", "pages", "concurrency", "batch_sizes", "treatments")
_TYPES: dict[str, Any] = {
    "workload": str, "observe": str, "sanitize": bool, "serialise_invocations": bool,
    "options": Mapping, "device_ids": list | tuple, "model": str | None,
}  # fmt: skip
_MOST_TRIALS, _MOST_REQUESTS = 100_000, 1_000_000
_LONGEST_TREATED = 120
"""Characters of a trial's id that name its treatments; a run's trials are directories."""


class PlanError(CachelabError):
    """A plan that cannot be run as it stands."""


@dataclass(frozen=True)
class Trial:
    """One fresh engine, asked one workload: a configuration and a repeat of it."""

    release: str
    prefix_sharing: str
    page_count: int
    concurrency: int
    repeat: int
    treatments: tuple[str, ...] = ()
    """Names of the changes made to the live engine."""

    @property
    def trial_id(self) -> str:
        """Equal for equal configurations in every run; it can name a directory.

        Where there are too many treatments to name, it has their number and a digest of them.
        """
        treated = "".join(f"-{name.replace(':', '=')}" for name in self.treatments)
        if len(treated) > _LONGEST_TREATED:
            digest = hashlib.sha256(treated.encode()).hexdigest()[:12]
            treated = f"-{len(self.treatments)}-treatments-{digest}"
        return (
            f"{self.release}-{self.prefix_sharing}-p{self.page_count}"
            f"-c{self.concurrency}-r{self.repeat}{treated}"
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A grid of trials. Raises PlanError at once if a value makes no sense.

    `rounds` is how many requests each client sends, one after another; None means one, or three
    for `prefix_reuse`; a workload file is always sent whole. `workload` may name several, as
    `mixed+multi_turn`: the repeats then ask them in turn. `options` go to the engine by name.
    `observe` is what is recorded: nothing, events (with invocations), or snapshots beside them.

    Every configuration is run with each of `treatments`, which are sets of changes to the live
    engine. In a set, `all` stands for every fix of its release and prefix sharing, `all-but:NAME`
    for all but one.

    `sanitize` checks what was recorded of each trial (and records events), and adds a control for
    each set of treatments, release and prefix sharing: a trial with these treatments and an
    injected fault, of all kinds in turn, and another one where the fault was never injected.

    Times are in seconds: `request_timeout_s` for one answer, `trial_timeout_s` for a trial with its
    start, `resubmit_s` for the pause after which a client sends a refused request again (None:
    never).
    """

    releases: tuple[str, ...]
    prefix_sharing: tuple[str, ...] = ("none",)
    pages: tuple[int, ...] = (256,)
    concurrency: tuple[int, ...] = (1, 2, 4, 8)
    workload: str = "mixed"
    repeats: int = 4
    rounds: int | None = None
    seed: int = 0
    max_new_tokens: int = 15
    batch_sizes: tuple[int, ...] = (4,)
    device: str = "auto"
    device_ids: tuple[str, ...] = ()
    hip_target: str | None = None
    model: str | None = None
    serialise_invocations: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    request_timeout_s: float = 60.0
    trial_timeout_s: float = 120.0
    resubmit_s: float | None = None
    observe: str = "nothing"
    treatments: tuple[tuple[str, ...], ...] = ((),)
    sanitize: bool = False

    def __post_init__(self) -> None:
        if self.sanitize and self.observe == "nothing":
            object.__setattr__(self, "observe", "events")
        for name, kinds in _TYPES.items():
            if not isinstance(value := getattr(self, name), kinds):
                raise PlanError(f"`{_flag(name)}` cannot be {shown(value)}.")
        for name in _LISTS:
            values = getattr(self, name)
            if isinstance(values, str) or not isinstance(values, Sequence) or not values:
                raise PlanError(f"`{_flag(name)}` needs at least one value.")
            if name == "treatments":
                values = [tuple(n) if isinstance(n, list | tuple) else (n,) for n in values]
            if name not in _BOUNDS:
                for part in itertools.chain(*values) if name == "treatments" else values:
                    if not isinstance(part, str):
                        raise PlanError(f"`{_flag(name)}` takes names, not {shown(part)}.")
            object.__setattr__(self, name, tuple(values))
        for name in _BOUNDS:
            values = getattr(self, name)
            for value in values if isinstance(values, tuple) else [values]:
                if name == "rounds" and value is None:
                    continue
                least, most, why = _BOUNDS[name]
                whole_number(value, f"`{_flag(name)}`", least, most, PlanError, why)
        for name in _LISTS:
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise PlanError(f"`{_flag(name)}` names a value twice: {_joined(values)}.")
        for names in self.treatments:
            if len(set(names)) != len(names):
                raise PlanError(f"A set of `--treatments` names one twice: {'+'.join(names)}.")
        for release in self.releases:
            row_of(release)
            if release not in supported():
                raise PlanError(
                    f"shortfin {release} is not supported yet: choose of {_joined(supported())}."
                )
        for name in ("request_timeout_s", "trial_timeout_s", "resubmit_s"):
            value = getattr(self, name)
            if name == "resubmit_s" and value is None:
                continue
            seconds(value, f"`{_flag(name)}`", LONGEST_TIMEOUT_S, error=PlanError)
        self._check_size()
        if self.observe not in OBSERVED:
            raise PlanError(
                f"`--observe` must be one of {_joined(OBSERVED)}, not {shown(self.observe)}."
            )
        if any(map(is_file, self.workloads)):
            if self.rounds is not None:
                raise PlanError("A workload file is sent whole, so leave `--rounds` out.")
            if len(self.workloads) > 1:
                raise PlanError("A workload file is asked by itself: name no other beside it.")
        if self.repeats < len(self.workloads):
            raise PlanError(
                f"Repeats ask {len(self.workloads)} workloads in turn, so {self.repeats} are too"
                " few: one would not be asked."
            )
        self._check_treatments()
        for trial in self.trials():
            EngineConfig.from_json(self.engine_config(trial))
        if self.device_ids:
            devices.resolve(self.device, self.hip_target, self.device_ids)

    def _check_size(self) -> None:
        """Raise PlanError for a plan that would not end or not fit."""
        axes = (self.releases, self.prefix_sharing, self.pages, self.concurrency, self.treatments)
        trials = math.prod(map(len, axes)) * self.repeats
        if trials > _MOST_TRIALS:
            raise PlanError(
                f"This is a plan of {trials:,} trials, each an engine of its own: a run takes up to"
                f" {_MOST_TRIALS:,}, so leave values or `--repeats` out."
            )
        requests = self.request_count(max(self.concurrency))
        if requests > _MOST_REQUESTS:
            raise PlanError(
                f"A trial would ask {requests:,} requests, and its prompts are kept in memory: it"
                f" takes up to {_MOST_REQUESTS:,}, so choose fewer `--rounds`."
            )

    def _check_treatments(self) -> None:
        if not any(self.treatments):
            return
        from analysis.treatments import check_names

        try:
            for trial in self._trials():
                for treatment in check_names(trial.treatments):
                    treatment.check(trial.release, trial.prefix_sharing)
        except EngineError as error:
            raise PlanError(str(error)) from error

    def trials(self, idle: Collection[str] = ()) -> list[Trial]:
        """Return every trial in the order in which it runs, repeats outermost.

        A sweep that is interrupted has then run all configurations about equally often. Trials that
        differ only in their treatments follow each other, in the order of the plan and, in every
        second repeat, in reverse: what drifts meanwhile favours none. Controls come first. `idle`
        names those whose fault was never injected: a fault of another family is tried after
        each, up to three for a set of treatments.
        """
        return [*self._controls(idle), *self._trials()]

    def _controls(self, idle: Collection[str]) -> Iterator[Trial]:
        if not self.sanitize:
            return
        from analysis.treatments.faults import tried

        pages, concurrency = max(self.pages), max(self.concurrency)
        # Another seed or concurrency begins with another fault.
        first = self.seed + concurrency.bit_length()
        for release in self.releases:
            for sharing in self.prefix_sharing:
                for number, names in enumerate(self.treatments):
                    meant = _expanded(names, release, sharing)
                    for fault in tried(release, sharing, first + number):
                        trial = Trial(release, sharing, pages, concurrency, 0, (*meant, fault))
                        yield trial
                        if trial.trial_id not in idle:
                            break

    def _trials(self) -> Iterator[Trial]:
        for repeat in range(self.repeats):
            for concurrency in self.concurrency:
                for release in self.releases:
                    for sharing in self.prefix_sharing:
                        for pages in self.pages:
                            for names in self.treatments[:: -1 if repeat % 2 else 1]:
                                meant = _expanded(names, release, sharing)
                                yield Trial(release, sharing, pages, concurrency, repeat, meant)

    @property
    def workloads(self) -> tuple[str, ...]:
        """The workloads, in the order in which repeats ask them."""
        return in_turn(self.workload)

    def workload_of(self, repeat: int) -> str:
        """Return the workload that a repeat asks."""
        return self.workloads[repeat % len(self.workloads)]

    def request_count(self, concurrency: int) -> int:
        """Return how many requests a trial of this concurrency sends (not for a workload file)."""
        rounds = self.rounds or max(
            WORKLOADS[name].rounds if name in WORKLOADS else 1 for name in self.workloads
        )
        return concurrency * rounds

    def engine_config(self, trial: Trial) -> dict[str, Any]:
        """Return the settings of a trial's engine, as `EngineConfig.from_json` takes them."""
        from analysis.treatments import page_count

        return {
            "model": str(model_directory(self.model)) if self.model else None,
            "device": self.device,
            "device_ids": list(self.device_ids),
            "hip_target": self.hip_target,
            "prefix_sharing": trial.prefix_sharing,
            "page_count": page_count(trial.treatments, trial.page_count),
            "batch_sizes": list(self.batch_sizes),
            "serialise_invocations": self.serialise_invocations,
            "options": dict(self.options),
        }

    def prompt_seed(self, concurrency: int, repeat: int) -> int:
        """Return the seed of a trial's prompts, the same for all that differs only otherwise."""
        name = f"{self.seed}/{self.workload_of(repeat)}/{concurrency}/{repeat}"
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big")

    def place(self, path: str | Path) -> Path:
        """Return the place of its own for this plan's run: `path` with a digest of the plan."""
        return place_of(Path(path), self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as plain values, by which a run is recognised when it is resumed."""
        plain = asdict(self)
        # So that runs from before there was a choice can be gone on with.
        later = {"observe": "nothing", "treatments": ((),), "sanitize": False, "resubmit_s": None}
        for name, default in later.items():
            if plain[name] == default:
                del plain[name]
        if any(map(is_file, self.workloads)):
            plain["workload_sha256"] = hashlib.sha256(Path(self.workload).read_bytes()).hexdigest()
        return plain


def _expanded(names: Sequence[str], release: str, sharing: str) -> tuple[str, ...]:
    if not names:
        return ()
    from analysis.treatments import expand

    try:
        return expand(names, release, sharing)
    except EngineError as error:
        raise PlanError(str(error)) from error


def _flag(name: str) -> str:
    return "--" + name.removesuffix("_s").replace("_", "-")


def _joined(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values))
