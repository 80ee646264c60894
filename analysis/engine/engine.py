"""The real engine in this process: start, send requests from any thread, stop."""

from __future__ import annotations

import atexit
import gc
import itertools
import logging
import os
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from analysis.core.errors import EngineError, is_encodable, seconds, shown, whole_number
from analysis.core.interrupts import uninterrupted
from analysis.engine.cache import Cache
from analysis.engine.clients import run_workload
from analysis.engine.completion import Completion, EngineDeath
from analysis.engine.requests import PendingRequest, Requests, token_ids
from analysis.engine.waiting import wait_until, within
from analysis.engine.watchdog import Watchdog
from analysis.model.artifacts import ModelArtifacts, load_model
from analysis.model.compile import compile_model
from analysis.model.tokenizer import ModelTokenizer
from analysis.shortfin import devices, worker_crashes
from analysis.shortfin.cache.probe import BaseProbe
from analysis.shortfin.capture import StderrCapture, report_fault
from analysis.shortfin.config import LONGEST_TIMEOUT_S, EngineConfig
from analysis.shortfin.hooks import Changes
from analysis.shortfin.port import CacheObserver, Call, Setup
from analysis.shortfin.service import installed_service
from analysis.shortfin.service.common import Service

CLOSE_TIMEOUT_S = 5.0
_CHECK_INTERVAL_S = 0.1
_DEAD_CHECKS = 3
"""Successive checks that must find a dead worker before an engine without error is dead."""
_SHOWN_FAULTS = 3
"""Most errors of this package that are shown for an engine without an observer."""
_numbers = itertools.count(1)


def _drop_exit_handlers() -> None:
    """Remove all exit handlers in a forked child: shortfin's waits for threads of the parent.

    atexit cannot remove a single handler. Children of `multiprocessing` run none of their parent's
    handlers either.
    """
    atexit._clear()


os.register_at_fork(after_in_child=_drop_exit_handlers)


class Engine:
    """A shortfin engine of the installed release, in this process.

    `with Engine(EngineConfig(...)) as engine:` starts the release's own system manager, service,
    page cache, batcher and scheduler, unmodified; leaving the block stops them. The engine's output
    and the stacks of a freeze are written to `log_dir` (default: a temporary directory). Raises
    EngineError or ModelError if it cannot start.
    """

    def __init__(
        self,
        config: EngineConfig | None = None,
        *,
        log_dir: Path | None = None,
        freeze_after_s: float = 30.0,
    ) -> None:
        if config is not None and not isinstance(config, EngineConfig):
            raise EngineError(f"An engine takes an EngineConfig, not {shown(config)}.")
        self.config = config or EngineConfig()
        self.release, self._service_class = installed_service()
        self.device, target = devices.resolve(
            self.config.device, self.config.hip_target, self.config.device_ids
        )
        self.model: ModelArtifacts = load_model(
            self.config.model, from_positions=self.config.prefills_from_positions
        )
        self.tokenizer = ModelTokenizer(self.model)
        self.vmfb = compile_model(
            self.model, batch_sizes=self.config.compiled_batch_sizes, target=target
        )
        self.name = f"cachelab{next(_numbers)}"
        self.died: EngineDeath | None = None
        self.service: Service | None = None
        """The release's service while the engine runs; `native` is shortfin's object."""
        self.cache = Cache(self)
        """The KV cache: `engine.cache.snapshot()`."""
        self.probe: BaseProbe | None = None
        """The attached probe; None if the engine is not observed."""
        self._requests = Requests(
            self.tokenizer, self.tokenizer.token_id(self.model.eos_token), self.fault
        )
        self.listeners = self._requests.listeners
        """Objects with lifecycle callbacks; see `requests.Listener`."""
        self.faults = 0
        """Errors of listeners and observers, as text."""
        self._temporary = None if log_dir else tempfile.TemporaryDirectory(prefix="cachelab-")
        self.log_dir = log_dir or Path(self._temporary.name)  # type: ignore[union-attr]
        self.log_dir.mkdir(parents=True, exist_ok=True)
        self._capture = StderrCapture(self.log_dir / f"engine-{self.name}.log")
        self._watchdog = Watchdog(self.log_dir / f"watchdog-{self.name}.txt", freeze_after_s)
        self._logging = logging.NullHandler()
        self._closing = threading.Event()
        self._undo: list[Callable[[], None]] = []
        self.changes = Changes()
        """Changes by `treat` and `observe`, to be undone."""
        self._started = 0.0
        self._dead_checks = 0
        """Successive checks that found a worker ended without an error."""
        self._pid = os.getpid()

    # -- life ------------------------------------------------------------------------------

    def start(self) -> Engine:
        """Build and start the engine; on failure, undo everything and raise."""
        if self._started:
            raise EngineError("This engine was already started. Make a new Engine.")
        self._started = self._requests.started = time.monotonic()
        self._capture.start()
        self._undo.append(self._capture.stop)
        # Add a root handler, else the logging calls of shortfin install one.
        logging.getLogger().addHandler(self._logging)
        self._undo.append(lambda: logging.getLogger().removeHandler(self._logging))
        try:
            self._watchdog.start()
            self._undo.append(self._watchdog.stop)
            worker_crashes.listen(self._on_death)
            self._undo.append(lambda: worker_crashes.unlisten(self._on_death))
            self.service = self._service_class(
                Setup(self.name, self.config, self.model, self.vmfb, self.device)
            )
            self.service.start()
            if self.config.serialise_invocations:
                self._undo.append(self.service.serialise_invocations())
        except BaseException as error:
            output = self._capture.text()
            self.close()
            if isinstance(error, Exception) and not isinstance(error, EngineError):
                raise EngineError(
                    f"shortfin {self.release} did not start on {self.device}:"
                    f" {_one_line(error)}"
                    + (f" (its output: {output[-300:].strip()})" if output else "")
                ) from error
            raise
        threading.Thread(target=self._watch, name=f"{self.name}-watch", daemon=True).start()
        return self

    def close(self) -> None:
        """Stop the engine within 5 s, also if it is dead or hangs; pending requests are ended.

        A part that does not stop in time is left on a daemon thread: a new Engine can be started,
        and the interpreter can exit.
        """
        if self._closing.is_set() or self._pid != os.getpid():
            return  # a forked child has none of the threads
        self._closing.set()
        with uninterrupted():
            self.changes.undo_all()
            self.unwatch()
            self._requests.lose_all("The engine was closed before it answered.")
            service, self.service = self.service, None
            if service is not None and self.died is not None:
                self._guarded("Closing the dead engine", worker_crashes.silence, service.owns)
            if service is not None:
                deadline = time.monotonic() + CLOSE_TIMEOUT_S - 1.0
                within(service.stop_service, min(1.5, deadline - time.monotonic()))
                if self.died is None:
                    wait_until(service.has_stopped, min(1.0, deadline - time.monotonic()))
                within(service.stop_system, max(0.1, deadline - time.monotonic() - 1.0))
                service.sysman.t.join(timeout=max(0.1, deadline - time.monotonic()))
            while self._undo:
                self._guarded("Closing the engine", self._undo.pop())
            del service
            gc.collect()  # the engine's objects form cycles and own its descriptors

    def __enter__(self) -> Engine:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.close()

    # -- asking ----------------------------------------------------------------------------

    def __repr__(self) -> str:
        state = "died" if self.died else "not running" if self.service is None else "running"
        config = self.config
        return (
            f"<Engine: shortfin {self.release} on {self.device}, prefix sharing"
            f" {config.prefix_sharing}, {config.page_count} pages, {state}>"
        )

    def submit(
        self,
        prompt: str | Sequence[int],
        max_new_tokens: int = 15,
        timeout_s: float = 60.0,
        request_id: str | None = None,
    ) -> Future[Completion]:
        """Send a prompt (text or token ids), and return the future of its completion.

        The future completes after `timeout_s` at the latest, with an outcome, never with an
        exception. Can be called from any thread. Raises EngineError for an invalid request (such as
        an empty prompt) or a closed engine.
        """
        context = self.model.config.max_seq_len
        max_new_tokens = whole_number(max_new_tokens, "max_new_tokens", 1, context)
        timeout_s = seconds(timeout_s, "timeout_s", LONGEST_TIMEOUT_S)
        if request_id is not None and not (isinstance(request_id, str) and request_id):
            raise EngineError(
                f"A request's id must be a text that is not empty, not {shown(request_id)}."
            )
        for what, given in (("prompt", prompt), ("id", request_id)):
            if isinstance(given, str) and not is_encodable(given):
                raise EngineError(
                    f"A request's {what} must be valid UTF-8 text, but {shown(given)} has a lone"
                    " surrogate."
                )
        text = prompt if isinstance(prompt, str) else None
        ids = token_ids(prompt, self.tokenizer)
        if len(ids) > context:
            raise EngineError(
                f"A prompt of {len(ids)} tokens is longer than the model's context of {context}."
            )
        now = time.monotonic()
        pending = PendingRequest(
            request_id=request_id or uuid.uuid4().hex,
            prompt=text if text is not None else self.tokenizer.decode(ids),
            prompt_tokens=ids,
            submitted=now,
            deadline=now + timeout_s,
            timeout_s=timeout_s,
            max_new_tokens=max_new_tokens,
        )
        pending.future.set_running_or_notify_cancel()  # a caller cannot cancel it
        with self._requests.lock:
            service = self.service
            if not self._started or self._closing.is_set() or service is None:
                raise EngineError("The engine is not running. Start it, or make a new one.")
            self._requests.add(pending)
        if self.died is not None:
            self._requests.end(pending, "engine_died", self.died.message)
            return pending.future
        pending.call = call = Call(
            request_id=pending.request_id,
            text=text,
            token_ids=ids,
            max_new_tokens=max_new_tokens,
            on_token=lambda token: self._requests.note_token(pending, token),
            on_end=lambda answer: self._requests.answered(pending, answer),
        )
        self._requests.notify("submitted", pending.request_id, ids)
        try:
            service.launch(call)
        except Exception as error:
            self._requests.end(pending, "error", f"The engine refused it: {_one_line(error)}")
        return pending.future

    def generate(
        self, prompt: str | Sequence[int], max_new_tokens: int = 15, timeout_s: float = 60.0
    ) -> Completion:
        """Send a prompt and wait for its completion; see `submit`."""
        # The engine ends every request at its deadline; the margin guards against a bug in that.
        return self.submit(prompt, max_new_tokens, timeout_s).result(timeout=timeout_s + 10)

    def give_up(self, request_ids: Iterable[str]) -> None:
        """End the pending ones of these requests, as if their deadlines had passed."""
        self._requests.give_up(request_ids)

    run = run_workload

    def clock_s(self) -> float:
        """Return the seconds since the engine was started, the time of all tables."""
        return time.monotonic() - self._started

    def watch(self, observer: CacheObserver) -> BaseProbe:
        """Attach an observer to the live engine and return the probe of its cache.

        Raises EngineError if the engine is not running or is already observed.
        """
        if self.service is None:
            raise EngineError("The engine is not running, so it cannot be observed.")
        if self.probe is not None:
            raise EngineError("This engine is already observed. End that observation first.")
        probe: BaseProbe = self.service.probe()
        probe.attach(observer)
        self.probe = probe
        return probe

    def unwatch(self) -> None:
        """Detach the observer, and restore the engine."""
        if (probe := self.probe) is not None:
            probe.detach()  # first: operations may still use the probe
            self.probe = None

    @property
    def log(self) -> str:
        """The engine's output so far."""
        return self._capture.text()

    # -- faults and deaths -----------------------------------------------------------------

    def _guarded(self, what: str, action: Callable[..., object], *args: Any) -> None:
        """Run code of this package, and keep its errors from the engine."""
        try:
            action(*args)
        except Exception as error:
            self.fault(what, error)

    def fault(self, what: str, error: Exception) -> None:
        """Report an error of this package. Must not raise.

        An observer records it. Without one, the first few go to the log and a warning.
        """
        self.faults += 1
        observer = None if self.probe is None else self.probe.observer
        if observer is not None:
            observer.fault(error)
        elif self.faults <= _SHOWN_FAULTS:
            report_fault(what, error)

    def _on_death(self, worker: Any, error: BaseException | None, text: str) -> bool:
        """Record a worker's death, on the worker's thread. Must be fast and must not raise."""
        service = self.service
        if service is None or not service.owns(worker):
            return False
        if self.died is not None:
            return True
        what = _one_line(error) if error is not None else text.strip().rpartition("\n")[2]
        self._die(f"The engine's worker {worker} died: {what}", text)
        return True

    def _die(self, message: str, text: str) -> None:
        self.died = death = EngineDeath(message, text)
        self._requests.notify("died", death)

    def _watch(self) -> None:
        """End requests that are past their deadline or wait for a dead engine."""
        while not self._closing.wait(_CHECK_INTERVAL_S):
            self._guarded("Checking the engine", self._check)

    def _check(self) -> None:
        now, service = time.monotonic(), self.service
        if self.died is None and service is not None:
            self._guarded("Checking the workers", self._check_workers, service)
        if self.died is not None:
            self._requests.lose_all(self.died.message)
            return
        for pending in self._requests.pending():
            if now > pending.deadline:
                limit = f"No answer within {pending.timeout_s:g} s."
                reason = "The client gave the request up." if pending.given_up else limit
                self._requests.end(pending, "timeout", reason)
                if service is not None and pending.call is not None:
                    self._guarded("Cancelling a request", service.cancel, pending.call)

    def _check_workers(self, service: Service) -> None:
        dead = service.dead_worker()
        # A worker that died with an error reports the error first.
        self._dead_checks = self._dead_checks + 1 if dead else 0
        if dead and self._dead_checks > _DEAD_CHECKS:
            self._die(dead, self.log[-4000:])


def _one_line(error: BaseException) -> str:
    return " ".join(traceback.format_exception_only(error)[-1].split())
