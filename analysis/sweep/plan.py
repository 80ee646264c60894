"""The plan of a sweep: its trials, their order and their workloads."""

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
from analysis.engine.http_engine import address_of
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
from analysis.shortfin.releases import MODES, row_of, supported
from analysis.sweep.grid import ENGINE, HTTP, Trial
from analysis.workloads.named import WORKLOADS, in_turn, is_file
from analysis.workloads.workload import MAX_NEW_TOKENS, WHY_NEW_TOKENS

OBSERVED = {"nothing": "nothing", "events": "events", "snapshots": "events and snapshots"}
"""Values of `observe`, with their names in the table `trials`."""
_BOUNDS = {
    "pages": (1, MAX_PAGES, WHY_PAGES),
    "concurrency": (1, 4096, "each client is a thread"),
    "batch_sizes": (1, MAX_BATCH, WHY_BATCH),
    "repeats": (1, 100_000, "each repeat is a fresh engine"),
    "max_new_tokens": (1, MAX_NEW_TOKENS, WHY_NEW_TOKENS),
    "rounds": (1, 1_000_000, "all prompts are kept in memory"),
    "seed": (0, 2**63 - 1, "it is stored as an integer of 64 bits"),
}
"""Least and greatest value of each number, and the reason for the limit."""
_LISTS = (
    "releases", "prefix_sharing", "pages", "concurrency", "batch_sizes", "treatments", "targets",
)  # fmt: skip
_TYPES: dict[str, Any] = {
    "workload": str, "observe": str, "sanitize": bool, "serialise_invocations": bool,
    "keep_wrong": bool,
    "options": Mapping, "axes": Mapping, "device_ids": list | tuple, "model": str | None,
}  # fmt: skip
_MOST_TRIALS, _MOST_REQUESTS = 100_000, 1_000_000


class PlanError(CachelabError):
    """An invalid plan."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A grid of trials. Raises PlanError for invalid values.

    `rounds` is the number of successive requests of each client; None means 1, or 3 for
    `prefix_reuse`. A workload file is always sent whole, without the prompts that the model alone
    answers wrong, or with them if `keep_wrong` is set. `workload` may name several, as in
    `mixed+multi_turn`: repeats then alternate between them. `options` are passed to the engine by
    name. `observe` is one of nothing, events (with invocations), and snapshots (with events).

    Every configuration is run with each of `treatments`, which are sets of names. In a set, `all`
    means every fix of the release and prefix sharing, and `all-but:NAME` all fixes except one.

    `sanitize` records events, checks each trial, and adds a control for each set of treatments,
    release and prefix sharing: a trial with these treatments and an injected fault. If the fault
    could not be injected, another one is tried.

    `targets` says what answers the requests: an `engine` in the trial's process, the release's own
    server, started for the trial (`http`), or the server that runs at an address such as
    http://127.0.0.1:8000, which all trials share. A server runs unmodified and is not recorded.

    `axes` are values of engine options, of which every combination is run. A release without
    `num_beams` or `chunk_block_size` is run once without it.

    Times are in seconds: `request_timeout_s` for one answer, `trial_timeout_s` for a trial with its
    start, `resubmit_s` for the pause before a rejected request is sent again (None: never).
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
    targets: tuple[str, ...] = (ENGINE,)
    axes: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    keep_wrong: bool = False

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
                raise PlanError(f"`{_flag(name)}` has a value twice: {_joined(values)}.")
        for names in self.treatments:
            if len(set(names)) != len(names):
                raise PlanError(f"A set of `--treatments` has a name twice: {'+'.join(names)}.")
        for release in self.releases:
            row_of(release)
            if release not in supported():
                raise PlanError(
                    f"shortfin {release} is not supported. Choose from {_joined(supported())}."
                )
        for name in ("request_timeout_s", "trial_timeout_s", "resubmit_s"):
            value = getattr(self, name)
            if name == "resubmit_s" and value is None:
                continue
            seconds(value, f"`{_flag(name)}`", LONGEST_TIMEOUT_S, error=PlanError)
        self._check_axes()
        self._check_size()
        if self.observe not in OBSERVED:
            raise PlanError(
                f"`--observe` must be one of {_joined(OBSERVED)}, not {shown(self.observe)}."
            )
        if any(map(is_file, self.workloads)):
            if self.rounds is not None:
                raise PlanError("A workload file is always sent whole. Remove `--rounds`.")
            if len(self.workloads) > 1:
                raise PlanError("A workload file cannot be combined with other workloads.")
        elif self.keep_wrong:
            raise PlanError("`--keep-wrong` is for a workload file. Give one, or remove it.")
        if self.repeats < len(self.workloads):
            raise PlanError(
                f"Repeats alternate between {len(self.workloads)} workloads, so `--repeats` must be"
                f" at least {len(self.workloads)}, not {self.repeats}."
            )
        for sharing in self.prefix_sharing:  # the controls of no other can be made
            EngineConfig(prefix_sharing=sharing)
        self._check_treatments()
        self._check_targets()
        for trial in self.trials():
            EngineConfig.from_json(self.engine_config(trial))
        if self.device_ids:
            devices.resolve(self.device, self.hip_target, self.device_ids)

    @classmethod
    def from_manifest(cls, plan: Mapping[str, Any], **changes: Any) -> Plan:
        """Return the plan in a run's manifest, with changes; what no plan has is left out.

        Raises PlanError, EngineError or TypeError for values of another version.
        """
        known = {name: _hashable(plan[name]) for name in cls.__dataclass_fields__ if name in plan}
        return cls(**{**known, **changes})

    def _check_size(self) -> None:
        """Raise PlanError for a plan that is too large."""
        axes = (self.releases, self.prefix_sharing, self.pages, self.concurrency, self.treatments,
                self.targets, *self.axes.values())  # fmt: skip
        trials = math.prod(map(len, axes)) * self.repeats
        if trials > _MOST_TRIALS:
            raise PlanError(
                f"The plan has {trials:,} trials, each with a fresh engine, but a run can have at"
                f" most {_MOST_TRIALS:,}. Remove values or `--repeats`."
            )
        requests = self.request_count(max(self.concurrency))
        if requests > _MOST_REQUESTS:
            raise PlanError(
                f"A trial would send {requests:,} requests, but can send at most"
                f" {_MOST_REQUESTS:,}, which are kept in memory. Choose fewer `--rounds`."
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

    def _check_axes(self) -> None:
        for name, values in self.axes.items():
            if not isinstance(name, str) or not name.isidentifier():
                raise PlanError(f"The axis {shown(name)} is not the name of an option.")
            if isinstance(values, str) or not isinstance(values, Sequence) or not values:
                raise PlanError(f"The axis {shown(name)} needs at least one value.")
            if name in self.options:
                raise PlanError(f"{shown(name)} is an option and an axis. Remove one of them.")
            for value in values:
                parts = value if isinstance(value, list | tuple) else [value]
                if not all(isinstance(part, str | int | float) for part in parts):
                    raise PlanError(
                        f"The axis {shown(name)} takes numbers, texts and lists of them, not"
                        f" {shown(value)}."
                    )
            if len({str(_hashable(value)) for value in values}) != len(values):
                raise PlanError(f"The axis {shown(name)} has a value twice: {_joined(values)}.")

    def _modes(self, release: str) -> list[tuple[tuple[str, Any], ...]]:
        """Return the combinations of the axes that a release has."""
        known = row_of(release).capabilities
        own = {n: v for n, v in self.axes.items() if n not in MODES or MODES[n] in known}
        values = [[(name, _hashable(value)) for value in own[name]] for name in sorted(own)]
        return list(itertools.product(*values))

    def _check_targets(self) -> None:
        if self.targets == (ENGINE,):
            return
        for name, changed in (
            ("sanitize", self.sanitize),
            ("observe", self.observe != "nothing"),
            ("treatments", any(self.treatments)),
            ("serialise_invocations", self.serialise_invocations),
        ):
            if changed:
                raise PlanError(f"A server runs unmodified. Remove `{_flag(name)}`, or `--target`.")
        for target in set(self.targets) - {ENGINE, HTTP}:
            try:
                address_of(target)
            except EngineError as error:
                raise PlanError(f"`--target` is {ENGINE}, {HTTP} or an address: {error}") from None
            if len(self.targets) > 1 or any(
                len(getattr(self, name)) > 1 for name in ("releases", "prefix_sharing", "pages")
            ):
                raise PlanError(
                    f"The server at {target} has one release, one way of prefix sharing and one"
                    " number of pages. Give one value each."
                )
            if self.options or self.axes:
                raise PlanError(f"The server at {target} has its own options. Remove yours.")

    def trials(self, idle: Collection[str] = ()) -> list[Trial]:
        """Return all trials in the order of execution, with repeats outermost.

        An interrupted sweep has then run all configurations about equally often. Trials that differ
        only in treatments or target follow each other, in reverse order in every second repeat, so
        that drift favours none. Controls come first. `idle` has the ids of controls without an
        injection: after each, a fault of another family is tried, up to three for a set of
        treatments.
        """
        return [*self._controls(idle), *self._trials()]

    def _controls(self, idle: Collection[str]) -> Iterator[Trial]:
        if not self.sanitize:
            return
        from analysis.treatments.faults import tried

        pages, concurrency = max(self.pages), max(self.concurrency)
        # The first fault depends on seed and concurrency.
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
                            yield from self._variants(release, sharing, pages, concurrency, repeat)

    def _variants(
        self, release: str, sharing: str, pages: int, concurrency: int, repeat: int
    ) -> Iterator[Trial]:
        """Return the trials of one place in the grid, which follow each other."""
        kinds = list(itertools.product(self._modes(release), self.treatments, self.targets))
        for options, names, target in kinds[:: -1 if repeat % 2 else 1]:
            meant = _expanded(names, release, sharing)
            yield Trial(release, sharing, pages, concurrency, repeat, meant, target, options)

    @property
    def workloads(self) -> tuple[str, ...]:
        """The workloads, in the order in which repeats use them."""
        return in_turn(self.workload)

    def workload_of(self, repeat: int) -> str:
        """Return the workload of a repeat."""
        return self.workloads[repeat % len(self.workloads)]

    def request_count(self, concurrency: int) -> int:
        """Return the number of requests of a trial (not for a workload file)."""
        rounds = self.rounds or max(
            WORKLOADS[name].rounds if name in WORKLOADS else 1 for name in self.workloads
        )
        return concurrency * rounds

    def engine_config(self, trial: Trial) -> dict[str, Any]:
        """Return the settings of a trial's engine for `EngineConfig.from_json`."""
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
            "options": self.options_of(trial),
        }

    def options_of(self, trial: Trial) -> dict[str, Any]:
        """Return the engine options of a trial: those of the plan, and its values of the axes."""
        return {**self.options, **dict(trial.options)}

    def prompt_seed(self, concurrency: int, repeat: int) -> int:
        """Return the seed of a trial's prompts; it depends only on concurrency and repeat."""
        name = f"{self.seed}/{self.workload_of(repeat)}/{concurrency}/{repeat}"
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big")

    def place(self, path: str | Path) -> Path:
        """Return the directory for this plan's run: `path` with a digest of the plan."""
        return place_of(Path(path), self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as plain values, to recognise its run when it is resumed."""
        plain = asdict(self)
        # Left out, so that runs from before this option can be resumed.
        later = {"observe": "nothing", "treatments": ((),), "sanitize": False, "resubmit_s": None,
                 "targets": (ENGINE,), "axes": {}, "keep_wrong": False}  # fmt: skip
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


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) else value


def _flag(name: str) -> str:
    return "--" + name.removesuffix("_s").replace("_", "-")


def _joined(values: Iterable[Any]) -> str:
    return ", ".join(map(str, values))
