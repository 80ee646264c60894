"""What the engine asks of every generation's service."""

from __future__ import annotations

import inspect
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any

from analysis.core.errors import EngineError
from analysis.model.artifacts import ModelArtifacts
from analysis.shortfin.cache.probe import CacheProbe, NodeNumbers
from analysis.shortfin.capture import tell_fault
from analysis.shortfin.config import EngineConfig


@dataclass(frozen=True)
class Setup:
    """All that building an engine needs, resolved."""

    name: str
    """Prefixes the names of the engine's workers, so that engines in one process are told apart."""
    config: EngineConfig
    model: ModelArtifacts
    vmfb: Path
    device: str


@dataclass(frozen=True)
class Answer:
    """How the engine ended a request. `error` is None unless it refused or failed it."""

    tokens: tuple[int, ...] | None = None
    """The answer's tokens where the engine's response carries them; None: those seen to arrive."""
    text: str | None = None
    """The answer's text where the engine's response carries that instead."""
    refused: bool = False
    error: str | None = None


def unread(error: Exception) -> Answer:
    """Return the answer of a request whose response could not be read, and tell of that."""
    tell_fault("Reading an answer", error)
    return Answer(error=f"Its answer could not be read: {type(error).__name__}: {error}")


@dataclass(frozen=True)
class Call:
    """One request on its way in; the callbacks may be called from any of the engine's threads."""

    request_id: str
    text: str | None
    """The prompt as text, for the engine's own tokenizer; None: `token_ids` go in as they are."""
    token_ids: tuple[int, ...]
    max_new_tokens: int
    on_token: Callable[[int | None], None]
    """A token arrived; None where the engine does not show which."""
    on_end: Callable[[Answer], None]


class Service(ABC):
    """Builds, starts, asks, watches and stops one engine of one generation."""

    name: str
    """The setup's name, which the engine's own workers bear."""
    native: Any
    """The release's own service object, live and unmodified."""
    sysman: Any
    """The release's own system manager."""
    _numbers: NodeNumbers | None = None

    @abstractmethod
    def __init__(self, setup: Setup) -> None:
        """Build the system and the service, without starting them."""

    @abstractmethod
    def start(self) -> None:
        """Start the service's own processes."""

    def start_system(self, timeout_s: float = 10.0) -> None:
        """Start the system's thread, and wait until its loop runs.

        A process that is launched while that thread still makes its loop can freeze with the GIL
        held: one side holds the GIL and wants the system's lock, the other the reverse (seen once,
        on 3.1.0).
        """
        running, run = threading.Event(), self.sysman.run

        async def told() -> None:
            running.set()
            await run()

        self.sysman.run = told
        self.sysman.t.daemon = True  # a hung system must not keep the interpreter from ending
        self.sysman.start()
        running.wait(timeout_s)
        del self.sysman.run

    @abstractmethod
    def launch(self, call: Call) -> None:
        """Send one request in; returns at once. May be called from any thread."""

    def responder_of(self, request_id: str) -> Any:  # noqa: B027  # a generation may keep none
        """Return what the engine answers a request to, None if it is not under way."""

    def cancel(self, call: Call) -> None:  # noqa: B027  # a generation may know no way
        """Ask the engine to drop what was launched, where the generation knows how."""

    def owns(self, worker: Any) -> bool:
        """Tell whether a worker belongs to this engine."""
        return f"'{self.name}-" in str(worker)

    def request_state(self, request_id: str) -> str:
        """Say where the engine has a request: pending, reserved, executing, working or unknown.

        A phase may follow. pending: a batcher has it in its list; reserved: it waits for others of
        its group; working: nobody waits for it, and its own task has not ended.
        """
        return "unknown"

    @abstractmethod
    def dead_worker(self) -> str | None:
        """Name a process of the engine that ended without a word, None while all live."""

    @abstractmethod
    def has_stopped(self) -> bool:
        """Tell whether all that a stopped service does has ended.

        What a worker still waits for when its thread stops is never let go of: the engine's memory
        and descriptors neither.
        """

    @abstractmethod
    def stop_service(self) -> None:
        """Run the release's own service shutdown; may raise or hang."""

    def stop_system(self) -> None:
        """Stop every worker thread; may hang."""
        self.sysman.shutdown()

    def probe(self) -> CacheProbe:
        """Return what reads the engine's cache, and watches it once attached.

        Nodes of the trie keep their numbers from one probe to the next.
        """
        if self._numbers is None:
            self._numbers = NodeNumbers()
        return self._probe_class()(self.native, self._numbers)

    @abstractmethod
    def _probe_class(self) -> type[CacheProbe]:
        """Return the generation's way to read and watch the cache."""

    def serialise_invocations(self) -> Callable[[], None]:
        """Let one invocation at a time run on each fiber; return what undoes it.

        Invocations take a lock that belongs to their fiber's own loop, before they touch the
        device.
        """
        import asyncio

        invocation, original = self.invocation_class(), self.invocation_class().run
        locks: dict[int, asyncio.Lock] = {}

        async def run(process: Any) -> None:
            lock = locks.setdefault(id(asyncio.get_running_loop()), asyncio.Lock())
            async with lock:
                await original(process)

        invocation.run = run

        def undo() -> None:
            invocation.run = original

        return undo

    @abstractmethod
    def invocation_class(self) -> Any:
        """Return the class whose `run` is one invocation."""


def model_settings(setup: Setup) -> dict[str, Any]:
    """Return what the model parameters of every generation are told, but for the cache's."""
    config, model = setup.config, setup.model.config
    return {
        "max_seq_len": model.max_seq_len,
        "transformer_block_count": model.transformer_block_count,
        "attn_head_dim": model.attn_head_dim,
        "prefill_batch_sizes": list(config.batch_sizes),
        "decode_batch_sizes": list(config.batch_sizes),
        "module_name": model.module_name,
        "module_abi_version": model.module_abi_version,
    }


def cache_settings(setup: Setup) -> dict[str, Any]:
    """Return what the cache parameters of every generation are told."""
    return {
        "block_seq_stride": setup.model.config.block_seq_stride,
        "attention_head_count_kv": setup.model.config.attention_head_count_kv,
        "device_block_count": setup.config.page_count,
    }


def type_of(name: str, known: Any) -> Any:
    """Return the release's own type of that name. Raises EngineError if it has none."""
    if not isinstance(found := getattr(known, name, None), type(known.float16)):
        raise EngineError(
            f"This release of shortfin has no type {name!r} for keys, values or scores: export the"
            " model with float16, bfloat16 or float32."
        )
    return found


def parameters_of(function: Any, without: Iterable[str] = ()) -> set[str]:
    """Return the names that `function` (or a dataclass) takes, without those given."""
    if isinstance(function, type) and hasattr(function, "__dataclass_fields__"):
        names = {f.name for f in dataclass_fields(function)}
    else:
        names = set(inspect.signature(function).parameters)
    return names - {"self", *without}


def share_out(
    release: str, options: Mapping[str, object], offers: Mapping[str, set[str]]
) -> dict[str, dict[str, object]]:
    """Give each option to the part of the engine that takes it by that name.

    Raises EngineError naming what is offered when nothing takes it.
    """
    shares: dict[str, dict[str, object]] = {part: {} for part in offers}
    for name, value in options.items():
        for part, names in offers.items():
            if name in names:
                shares[part][name] = value
                break
        else:
            offered = ", ".join(sorted(set().union(*offers.values())))
            raise EngineError(f"shortfin {release} offers no option {name!r}: it offers {offered}.")
    return shares
