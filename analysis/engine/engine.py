"""The real engine in this very process: started, asked from any thread, and always stopped."""

from __future__ import annotations

import atexit
import contextlib
import gc
import itertools
import logging
import operator
import os
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from analysis.core.errors import EngineError, is_encodable, seconds, shown, whole_number
from analysis.core.interrupts import uninterrupted
from analysis.engine.cache import Cache
from analysis.engine.watchdog import Watchdog
from analysis.model.artifacts import ModelArtifacts, load_model
from analysis.model.compile import compile_model
from analysis.model.tokenizer import ModelTokenizer
from analysis.shortfin import devices, worker_crashes
from analysis.shortfin.capture import StderrCapture, report_fault
from analysis.shortfin.config import LONGEST_TIMEOUT_S, Completion, EngineConfig, EngineDeath
from analysis.shortfin.hooks import Changes
from analysis.shortfin.port import Answer, CacheObserver, CacheProbe, Call, Service, Setup
from analysis.shortfin.service import installed_service

if TYPE_CHECKING:
    import pandas as pd

    from analysis.engine.clients import OnResult
    from analysis.workloads.workload import Answers, Workload

CLOSE_TIMEOUT_S = 5.0
_WATCH_INTERVAL_S, _SILENT_LOOKS = 0.1, 3
_LISTENING = "Listening to the engine"
_SHOWN_FAULTS = 3
"""How many errors of the watching are shown for each engine while no watcher counts them."""
_numbers = itertools.count(1)


def _forget_the_parent() -> None:
    """Leave out, in a forked child, what waits at its end for threads that only the parent has.

    shortfin registers such a thing, and there is no other way to it. The child runs none of its
    parent's other ends either, as one of `multiprocessing` does not.
    """
    atexit._clear()


os.register_at_fork(after_in_child=_forget_the_parent)


class Listener(Protocol):
    """Who is told what becomes of requests, on whichever thread it happens; never may it raise.

    What it raises all the same is told as a fault, and reaches neither the engine nor the others.
    """

    def submitted(self, request_id: str, prompt_tokens: Sequence[int]) -> None:
        """Hear that a request is about to be sent in."""

    def token(self, request_id: str, token: int | None, first: bool) -> None:
        """Hear that a token of it arrived."""

    def answered(self, request_id: str, tokens: Sequence[int], count: int) -> None:
        """Hear that the engine delivered an answer of these tokens to it, its `count`-th."""

    def done(self, completion: Completion) -> None:
        """Hear that it ended, before whoever waits for it does."""

    def late(self, request_id: str, outcome: str) -> None:
        """Hear that the engine ended a request that had ended already, as past its deadline."""

    def died(self, death: EngineDeath) -> None:
        """Hear that a worker of the engine died, and the engine with it."""


@dataclass
class _Waiting:
    """A request under way."""

    request_id: str
    prompt: str
    prompt_tokens: tuple[int, ...]
    submitted: float
    deadline: float
    timeout_s: float
    max_new_tokens: int
    future: Future[Completion] = field(default_factory=Future)
    tokens: list[int] = field(default_factory=list)
    token_s: list[float] = field(default_factory=list)
    call: Call | None = None
    given_up: bool = False
    answers: int = 0
    """Answers that the engine delivered; errors and refusals are none."""


class Engine:
    """A shortfin engine of the installed release, in this process.

    `with Engine(EngineConfig(...)) as engine:` builds and starts the release's own system manager,
    service, page cache, batcher and scheduler, as they are; leaving the block stops them. `log_dir`
    is where what the engine prints, and the dump of a freeze, are kept (a temporary directory if
    not given). Raises EngineError or ModelError with one sentence when it cannot start.
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
        self.model: ModelArtifacts = load_model(self.config.model)
        self.tokenizer = ModelTokenizer(self.model)
        self._eos = self.tokenizer.token_id(self.model.eos_token)
        self.vmfb = compile_model(self.model, batch_sizes=self.config.batch_sizes, target=target)
        self.name = f"cachelab{next(_numbers)}"
        self.died: EngineDeath | None = None
        self.service: Service | None = None
        """The release's service while the engine runs; `native` is shortfin's own object."""
        self.cache = Cache(self)
        """Looks at the KV cache: `engine.cache.snapshot()`."""
        self.probe: CacheProbe | None = None
        """What watches the cache while the engine is observed."""
        self.listeners: list[Listener] = []
        self.faults = 0
        """Errors of listeners, and of what else of this package looks at the engine."""
        self._temporary = None if log_dir else tempfile.TemporaryDirectory(prefix="cachelab-")
        self.log_dir = log_dir or Path(self._temporary.name)  # type: ignore[union-attr]
        self.log_dir.mkdir(parents=True, exist_ok=True)
        self._capture = StderrCapture(self.log_dir / f"engine-{self.name}.log")
        self._watchdog = Watchdog(self.log_dir / f"watchdog-{self.name}.txt", freeze_after_s)
        self._logging = logging.NullHandler()
        self._lock = threading.Lock()
        self._waiting: dict[str, _Waiting] = {}
        self._closing = threading.Event()
        self._undo: list[Callable[[], None]] = []
        self.changes = Changes()
        """What `treat` and `observe` changed, and have to undo."""
        self._started = 0.0
        self._silence = 0
        """Looks in a row at which a process of the engine had ended without a word."""
        self._pid = os.getpid()

    # -- life ------------------------------------------------------------------------------

    def start(self) -> Engine:
        """Build and start the engine; on failure undo everything, then raise."""
        if self._started:
            raise EngineError("This engine was started before: make a new Engine.")
        self._started = time.monotonic()
        self._capture.start()
        self._undo.append(self._capture.stop)
        # Without a handler on the root logger, shortfin's root-level calls install one of theirs.
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
            said = self._capture.text()
            self.close()
            if isinstance(error, Exception) and not isinstance(error, EngineError):
                raise EngineError(
                    f"shortfin {self.release} could not be started on {self.device}:"
                    f" {_one_line(error)}" + (f" (it said: {said[-300:].strip()})" if said else "")
                ) from error
            raise
        threading.Thread(target=self._watch, name=f"{self.name}-watch", daemon=True).start()
        return self

    def close(self) -> None:
        """Stop the engine within 5 s, also one that is dead or hung; what waits is lost.

        A part that does not stop in time is abandoned on a daemon thread: a new Engine can be
        started all the same, and the interpreter can end.
        """
        if self._closing.is_set() or self._pid != os.getpid():
            return  # in a forked child there is nothing to stop: the threads stayed behind
        self._closing.set()
        with uninterrupted():
            self.changes.undo_all()
            self.unwatch()
            self._lose_all("The engine was closed before it answered.")
            service, self.service = self.service, None
            if service is not None and self.died is not None:
                self._guarded("Burying the dead engine", worker_crashes.bury, service.owns)
            if service is not None:
                deadline = time.monotonic() + CLOSE_TIMEOUT_S - 1.0
                _within(service.stop_service, min(1.5, deadline - time.monotonic()))
                if self.died is None:
                    _wait_until(service.has_stopped, min(1.0, deadline - time.monotonic()))
                _within(service.stop_system, max(0.1, deadline - time.monotonic() - 1.0))
                service.sysman.t.join(timeout=max(0.1, deadline - time.monotonic()))
            while self._undo:
                self._guarded("Closing the engine", self._undo.pop())
            del service
            gc.collect()  # the engine's own objects hold each other: with them go its descriptors

    def __enter__(self) -> Engine:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- asking ----------------------------------------------------------------------------

    def submit(
        self,
        prompt: str | Sequence[int],
        max_new_tokens: int = 15,
        timeout_s: float = 60.0,
        request_id: str | None = None,
    ) -> Future[Completion]:
        """Send a prompt (text, or token ids) in; return the future of its completion.

        The future always completes, at the latest after `timeout_s`; it carries an outcome, never
        an exception. May be called from any thread. Raises EngineError for a request that cannot
        be put (an empty prompt, no tokens wanted, a closed engine).
        """
        context = self.model.config.max_seq_len
        max_new_tokens = whole_number(max_new_tokens, "max_new_tokens", 1, context)
        timeout_s = seconds(timeout_s, "timeout_s", LONGEST_TIMEOUT_S)
        if request_id is not None and not (isinstance(request_id, str) and request_id):
            raise EngineError(
                f"A request's id is a text that is not empty, not {shown(request_id)}."
            )
        for what, given in (("prompt", prompt), ("id", request_id)):
            if isinstance(given, str) and not is_encodable(given):
                raise EngineError(
                    f"A request's {what} must be text that UTF-8 can encode, and {shown(given)} has"
                    " a lone surrogate."
                )
        text = prompt if isinstance(prompt, str) else None
        ids = self._token_ids(prompt)
        if len(ids) > context:
            raise EngineError(
                f"A prompt of {len(ids)} tokens is longer than the model's context of {context}."
            )
        now = time.monotonic()
        waiting = _Waiting(
            request_id=request_id or uuid.uuid4().hex,
            prompt=text if text is not None else self.tokenizer.decode(ids),
            prompt_tokens=ids,
            submitted=now,
            deadline=now + timeout_s,
            timeout_s=timeout_s,
            max_new_tokens=max_new_tokens,
        )
        # Whoever waits cannot cancel it: only its end here completes it.
        waiting.future.set_running_or_notify_cancel()
        with self._lock:
            service = self.service
            if not self._started or self._closing.is_set() or service is None:
                raise EngineError("The engine is not running: start it, or make a new one.")
            if waiting.request_id in self._waiting:
                raise EngineError(f"A request {waiting.request_id!r} is already under way.")
            self._waiting[waiting.request_id] = waiting
        if self.died is not None:
            self._end(waiting, "lost", self.died.message)
            return waiting.future
        waiting.call = call = Call(
            request_id=waiting.request_id,
            text=text,
            token_ids=ids,
            max_new_tokens=max_new_tokens,
            on_token=lambda token: self._note_token(waiting, token),
            on_end=lambda answer: self._answered(waiting, answer),
        )
        self._tell(lambda listener: listener.submitted(waiting.request_id, ids))
        try:
            service.launch(call)
        except Exception as error:
            self._end(waiting, "error", f"The engine would not take it: {_one_line(error)}")
        return waiting.future

    def _token_ids(self, prompt: object) -> tuple[int, ...]:
        """Return the token ids of a prompt; raise EngineError for what is none."""
        if isinstance(prompt, str):
            ids = tuple(self.tokenizer.encode(prompt))
            if not prompt or not ids:
                raise EngineError("The prompt is empty: give at least one token.")
            return ids
        vocabulary = self.tokenizer.vocabulary_size
        try:
            ids = tuple(operator.index(token) for token in prompt)  # type: ignore[attr-defined]
        except TypeError:
            raise EngineError(
                f"A prompt is a text or a list of token ids, not {shown(prompt)}."
            ) from None
        if not ids:
            raise EngineError("The prompt is empty: give at least one token.")
        if not all(0 <= token < vocabulary for token in ids):
            raise EngineError(f"A prompt's token ids must lie in 0 to {vocabulary - 1}.")
        return ids

    def generate(
        self, prompt: str | Sequence[int], max_new_tokens: int = 15, timeout_s: float = 60.0
    ) -> Completion:
        """Send one prompt in and wait for its completion; see `submit`."""
        # The watch ends every request at its deadline; the margin only guards against itself.
        return self.submit(prompt, max_new_tokens, timeout_s).result(timeout=timeout_s + 10)

    def give_up(self, request_ids: Iterable[str]) -> None:
        """End those of these requests that are under way, as if their deadlines had passed."""
        with self._lock:
            for waiting in filter(None, map(self._waiting.get, request_ids)):
                waiting.given_up, waiting.deadline = True, 0.0

    def run(
        self,
        workload: Workload,
        concurrency: int,
        *,
        timeout_s: float = 60.0,
        references: Answers | None = None,
        on_result: OnResult | None = None,
        resubmit_s: float | None = None,
    ) -> pd.DataFrame:
        """Have `concurrency` client threads ask a workload; see `clients.run_workload`."""
        from analysis.engine.clients import run_workload

        return run_workload(
            self,
            workload,
            concurrency,
            timeout_s=timeout_s,
            references=references,
            on_result=on_result,
            resubmit_s=resubmit_s,
        )

    def clock_s(self) -> float:
        """Return the seconds since the engine was started, as in every table."""
        return time.monotonic() - self._started

    def watch(self, watcher: CacheObserver) -> CacheProbe:
        """Attach a watcher to the live engine and return what reads its cache.

        Raises EngineError if the engine is not running or watched already.
        """
        service = self.service
        if service is None:
            raise EngineError("The engine is not running, so there is nothing to watch.")
        if self.probe is not None:
            raise EngineError("This engine is observed already: end that first.")
        probe = service.probe()
        probe.attach(watcher)
        self.probe = probe
        return probe

    def unwatch(self) -> None:
        """Take the watcher off, so that the engine is as it was before."""
        if (probe := self.probe) is not None:
            probe.detach()  # first: until then an operation may ask for the probe
            self.probe = None

    @property
    def log(self) -> str:
        """What the engine printed so far."""
        return self._capture.text()

    # -- ending requests -------------------------------------------------------------------

    def _answered(self, waiting: _Waiting, answer: Answer) -> None:
        try:
            tokens = self._delivered(waiting, answer)
        except Exception as error:
            self.fault("Reading an answer", error)
            self._end(waiting, "error", f"Its answer could not be read: {_one_line(error)}")
            return
        if answer.error is None and self._is_last(waiting):
            waiting.answers += 1
            self._tell(lambda one: one.answered(waiting.request_id, tokens, waiting.answers))
        waiting.tokens = tokens[: waiting.max_new_tokens]
        if answer.refused:
            self._end(waiting, "rejected", answer.error)
        elif answer.error is not None:
            self._end(waiting, "error", answer.error)
        else:
            self._end(waiting, "ok" if waiting.tokens else "empty", None)

    def _delivered(self, waiting: _Waiting, answer: Answer) -> list[int]:
        """Return the tokens of an answer; those of a text are guessed if others were seen."""
        if answer.tokens is not None:
            return list(answer.tokens)
        if answer.text is None or answer.text == self.tokenizer.decode(waiting.tokens):
            return waiting.tokens
        first = len(self.tokenizer.encode(""))  # what is put before every text
        return list(self.tokenizer.encode(answer.text))[first:]

    def _is_last(self, waiting: _Waiting) -> bool:
        """Tell whether no later request has the name of this one."""
        return self._waiting.get(waiting.request_id) in (waiting, None)

    def _end(self, waiting: _Waiting, outcome: str, error: str | None) -> None:
        with self._lock:
            # By identity: after a timeout another request may bear the name.
            over = self._waiting.get(waiting.request_id) is not waiting
            if not over:
                del self._waiting[waiting.request_id]
        if over:  # an answer past its deadline changes nothing
            self._tell(lambda listener: listener.late(waiting.request_id, outcome))
            return
        now = time.monotonic()
        tokens = tuple(waiting.tokens)
        token_s = tuple(t - waiting.submitted for t in waiting.token_s[: len(tokens)])
        completion = Completion(
            request_id=waiting.request_id,
            prompt=waiting.prompt,
            prompt_tokens=waiting.prompt_tokens,
            tokens=tokens,
            text=self._text(tokens),
            outcome=outcome,
            error=error,
            submitted_s=waiting.submitted - self._started,
            latency_s=now - waiting.submitted,
            ttft_s=token_s[0] if token_s else now - waiting.submitted if tokens else None,
            token_s=token_s,
            missing_tokens=self._missing(waiting) if outcome == "ok" else 0,
        )
        self._tell(lambda listener: listener.done(completion))
        waiting.future.set_result(completion)

    def _text(self, tokens: Sequence[int]) -> str:
        """Return tokens as text; nothing for what is no token, as the request has to end."""
        try:
            return self.tokenizer.decode(tokens)
        except Exception as error:
            self.fault("Reading an answer", error)
            return ""

    def _missing(self, waiting: _Waiting) -> int:
        if waiting.tokens and waiting.tokens[-1] == self._eos:
            return 0
        return waiting.max_new_tokens - len(waiting.tokens)

    def _note_token(self, waiting: _Waiting, token: int | None) -> None:
        waiting.token_s.append(time.monotonic())
        for listener in self.listeners:
            try:
                listener.token(waiting.request_id, token, len(waiting.token_s) == 1)
            except Exception as error:
                self.fault(_LISTENING, error)
        if token is not None:
            waiting.tokens.append(token)

    def _tell(self, what: Callable[[Listener], None]) -> None:
        for listener in tuple(self.listeners):
            self._guarded(_LISTENING, what, listener)

    def _guarded(self, what: str, action: Callable[..., object], *args: Any) -> None:
        """Do something of our own on whichever thread; that it failed must not reach the engine."""
        try:
            action(*args)
        except Exception as error:
            self.fault(what, error)

    def fault(self, what: str, error: Exception) -> None:
        """Say where a person sees it that something of this package failed; it never raises.

        A watcher records it; without one the log and a warning say it, a few times.
        """
        self.faults += 1
        watcher = None if self.probe is None else self.probe.observer
        if watcher is not None:
            watcher.fault(error)
        elif self.faults <= _SHOWN_FAULTS:
            report_fault(what, error)

    def _lose_all(self, reason: str) -> None:
        for waiting in list(self._waiting.values()):
            self._end(waiting, "lost", reason)

    # -- watching --------------------------------------------------------------------------

    def _on_death(self, worker: Any, error: BaseException | None, text: str) -> bool:
        """Listen, on the dying worker's own thread; keep it short and never raise."""
        service = self.service
        if service is None or not service.owns(worker):
            return False
        if self.died is not None:
            return True
        what = _one_line(error) if error is not None else text.strip().rpartition("\n")[2]
        self._die(f"The engine's worker {worker} died: {what}", text)
        return True

    def _die(self, message: str, text: str) -> None:
        self.died = death = EngineDeath(message, text, time.monotonic() - self._started)
        self._tell(lambda listener: listener.died(death))

    def _watch(self) -> None:
        """End what is past its deadline, or waits for an engine that died."""
        while not self._closing.wait(_WATCH_INTERVAL_S):
            self._guarded("The watch over the engine", self._look)

    def _look(self) -> None:
        now = time.monotonic()
        if self.died is None and (service := self.service) is not None:
            self._guarded("Looking for a silent death", self._look_for_silence, service)
        if self.died is not None:
            self._lose_all(self.died.message)
            return
        for waiting in list(self._waiting.values()):
            if now > waiting.deadline:
                service = self.service
                limit = f"No answer within {waiting.timeout_s:g} s."
                reason = "Its client gave it up." if waiting.given_up else limit
                self._end(waiting, "timeout", reason)
                if service is not None and waiting.call is not None:
                    self._guarded("Cancelling a request", service.cancel, waiting.call)

    def _look_for_silence(self, service: Service) -> None:
        silent = service.dead_worker()
        # A worker that is about to say why it died comes before this.
        self._silence = self._silence + 1 if silent else 0
        if silent and self._silence > _SILENT_LOOKS:
            self._die(silent, self.log[-4000:])


def _one_line(error: BaseException) -> str:
    return " ".join(traceback.format_exception_only(error)[-1].split())


def _wait_until(condition: Callable[[], bool], timeout_s: float) -> None:
    """Wait for at most `timeout_s` until a condition holds, or cannot be asked."""
    deadline = time.monotonic() + timeout_s
    with contextlib.suppress(Exception):
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.005)


def _within(action: Callable[[], None], timeout_s: float) -> None:
    """Run `action` on a daemon thread for at most `timeout_s`; its errors are the engine's own."""

    def run() -> None:
        with contextlib.suppress(Exception):
            action()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout=max(0.0, timeout_s))
