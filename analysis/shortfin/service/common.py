"""The base class of all generations of the server."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields as dataclass_fields
from typing import Any

from analysis.core.errors import EngineError
from analysis.shortfin.cache.base import LiveCache
from analysis.shortfin.capture import report_fault
from analysis.shortfin.config import PHASES
from analysis.shortfin.port import Answer, Call, Setup
from analysis.shortfin.releases import installed_release

_BATCH_SIZES = {phase: f"{phase}_batch_sizes" for phase in PHASES}


class Responder:
    """Receives the engine's answer to one request, instead of a web responder."""

    is_disconnected = False

    def __init__(self, call: Call, on_end: Callable[[Responder, Answer], None]) -> None:
        self.call = call
        self._on_end = on_end
        self._answered = threading.Event()
        self._parts: list[bytes] = []

    def read(self, response: Any) -> Answer:
        """Return the answer in a response."""
        raise NotImplementedError

    def read_stream(self, parts: Sequence[bytes]) -> Answer:
        """Return the answer in the parts of a streamed response, each with a token id."""
        return Answer(tokens=tuple(int(part.rpartition(b": ")[2]) for part in parts))

    def send_response(self, response: Any) -> None:
        """Read the engine's response and end the request."""
        self._read(self.read, response)

    def _read(self, read: Callable[[Any], Answer], response: Any) -> None:
        try:
            answer = read(response)
        except Exception as error:
            report_fault("Reading an answer", error)
            text = f"{type(error).__name__}: {error}"
            answer = Answer(error=f"The answer could not be read: {text}")
        self.end(answer)

    def ensure_response(self) -> None:
        """End the request if it got no response."""
        if not self._answered.is_set():
            self.end(Answer(error="The engine ended the request without an answer."))

    def fail(self, error: str) -> None:
        """End the request with an error; a later response of the engine is ignored."""
        self.end(Answer(error=error))

    def start_response(self, **_: object) -> None:
        """Do nothing: headers of a web response."""

    def stream_start(self, **_: object) -> None:
        """Do nothing: headers of a streamed web response."""

    def stream_part(self, content: bytes | None) -> None:
        """Keep a part of a streamed response; None ends it."""
        if content is not None:
            self._parts.append(content)
        else:
            self._read(self.read_stream, self._parts[:-1])  # the last one marks the end

    def end(self, answer: Answer) -> None:
        """End the request with an answer."""
        self._answered.set()
        self._on_end(self, answer)


class Service(LiveCache, ABC):
    """Builds, starts and stops one server, and sends requests to it.

    A generation is a subclass that builds `native` and `sysman` from a `Setup`.
    """

    name: str
    """The setup's name, a prefix of the names of the engine's workers."""
    sysman: Any
    """The release's system manager."""
    streams = False
    """Whether answers are streamed."""
    surplus_tokens = 0
    """Tokens that the engine returns beyond the number asked for (one up to 3.5)."""

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.name = setup.name
        self.responders: dict[str, Responder] = {}

    @abstractmethod
    def launch(self, call: Call) -> None:
        """Send one request, and return at once. Can be called from any thread."""

    @abstractmethod
    def request_state(self, request_id: str) -> str:
        """Return the state of a request: pending, reserved, executing, working or unknown.

        A phase may follow. pending: in a batcher's list; reserved: waits for other requests of its
        group; working: in no list, and its task has not ended.
        """

    @abstractmethod
    def invocation_class(self) -> Any:
        """Return the class with the method `run`, which is one invocation."""

    def requests_of(self, process: Any) -> list[Any]:
        """Return the live list of the requests of an invocation, with capability `request-list`."""
        requests: list[Any] = process.exec_requests
        return requests

    @abstractmethod
    def workers(self) -> dict[str, str]:
        """Return the processes of the server by name, each as text of shortfin."""

    @property
    def edits(self) -> Any:
        """The generation's module with changes for treatments and faults."""
        return importlib.import_module(f"{type(self).__module__}_edits")

    def load(self, setup: Setup) -> None:
        """Load the compiled model and its parameters into the native service."""
        self.native.load_inference_module(setup.vmfb)
        self.native.load_inference_parameters(*setup.model.parameters, parameter_scope="model")

    def start(self, timeout_s: float = 10.0) -> None:
        """Start the system, wait until its loop runs, and start the service's processes."""
        # A process launched before the system's loop runs can freeze with the GIL held: one side
        # holds the GIL and waits for the system's lock, the other one the reverse.
        running, run = threading.Event(), self.sysman.run

        async def report() -> None:
            running.set()
            await run()

        self.sysman.run = report
        self.sysman.t.daemon = True  # a hung system must not prevent the interpreter's exit
        self.sysman.start()
        running.wait(timeout_s)
        del self.sysman.run
        self.native.start()

    def end(self, responder: Responder, answer: Answer) -> None:
        """End a request; another request may have the same id by now."""
        request_id = responder.call.request_id
        if self.responders.get(request_id) is responder:
            del self.responders[request_id]
        responder.call.on_end(answer)

    def responder_of(self, request_id: str) -> Responder | None:
        """Return the responder of a pending request; None without such a request."""
        return self.responders.get(request_id)

    def cancel(self, call: Call) -> None:
        """Cancel a launched request, if the generation supports it."""

    def owns(self, worker: Any) -> bool:
        """Return whether a worker belongs to this engine."""
        pool = getattr(self.native, "main_fiber_pool", None)
        # The names of a pool's workers are the same in every engine.
        pooled = () if pool is None else pool._FiberPool__workers
        return f"'{self.name}-" in str(worker) or any(
            worker is own or worker == own for own in pooled
        )

    def dead_worker(self) -> str | None:
        """Describe a process of the engine that ended without an error; None if all are alive."""
        for name, state in self.workers().items():
            if "TERMINATED" in state:
                return f"The {name} ended: {state}."
        return None

    def has_stopped(self) -> bool:
        """Return whether all processes of a stopped service have ended.

        A worker that still waits when its thread stops keeps the engine's memory and
        descriptors.
        """
        return all("TERMINATED" in state for state in self.workers().values())

    def stop_service(self) -> None:
        """Run the release's service shutdown; may raise or hang."""
        self.native.shutdown()

    def stop_system(self) -> None:
        """Stop every worker thread; may hang."""
        self.sysman.shutdown()

    def serialise_invocations(self) -> Callable[[], None]:
        """Allow one invocation at a time on each fiber; return the undo function."""
        # Invocations take a lock of their fiber's loop before they use the device.
        invocation = self.invocation_class()
        original, locks = invocation.run, dict[int, asyncio.Lock]()

        async def run(process: Any) -> None:
            async with locks.setdefault(id(asyncio.get_running_loop()), asyncio.Lock()):
                await original(process)

        def undo() -> None:
            invocation.run = original

        invocation.run = run
        return undo


def waiting_state(batcher: Any, request_id: str) -> str | None:
    """Return whether a request is `pending` or `reserved` in a batcher with groups, else None."""
    waiting = list(batcher.pending)
    own = [r for r in waiting if r.rid == request_id]
    if not own:
        return None
    return state_in_group(batcher.scheduler, own, waiting)


def state_in_group(scheduler: Any, own: Iterable[Any], waiting: Iterable[Any]) -> str:
    """Return `reserved` if members of the requests' groups are not among the waiting ones."""
    groups = [scheduler._workgroup_placement.get(r.orig_instance_id) for r in own]
    members = {
        member
        for group in groups
        if (found := scheduler._workgroups.get(group)) is not None
        for member in found.members
    }
    return "reserved" if members - {r.orig_instance_id for r in waiting} else "pending"


def tokenizer_of(setup: Setup) -> Any:
    """Return the release's tokenizer for the model."""
    from shortfin_apps.llm.components.tokenizer import Tokenizer

    return Tokenizer.from_tokenizer_json_file(
        setup.model.tokenizer_json, eos_token=setup.model.eos_token
    )


def generate_request(call: Call, sampling: Any, *, ids: bool = True, stream: bool = False) -> Any:
    """Return the release's request for a call; `ids` says if prompts and answers may be token ids.

    The ids are copied, because the engine may change the list. `stream` asks for an answer in
    parts.
    """
    from shortfin_apps.llm.components.io_struct import GenerateReqInput

    prompt: dict[str, Any] = {"text": call.text if call.text is not None else ""}
    if ids:
        own = list(call.token_ids) if call.text is None else None
        prompt = {"text": call.text, "input_ids": own, "return_input_ids": True}
    if stream:
        prompt["stream"] = True
    request = GenerateReqInput(**prompt, sampling_params=sampling, rid=call.request_id)
    request.post_init()
    return request


def answer_of_beams(beams: Sequence[Sequence[Any]]) -> Answer:
    """Return the answer with the tokens of one beam or several."""
    tokens = tuple(tuple(map(int, beam)) for beam in beams)
    return Answer(tokens=tokens[0], beams=tokens if len(tokens) > 1 else ())


def model_settings(setup: Setup) -> dict[str, Any]:
    """Return the model parameters of every generation, without those of the cache."""
    config, model = setup.config, setup.model.config
    return {
        "max_seq_len": model.max_seq_len,
        "transformer_block_count": model.transformer_block_count,
        "attn_head_dim": model.attn_head_dim,
        **{name: config.batch_sizes_of(phase) for phase, name in _BATCH_SIZES.items()},
        "module_name": model.module_name,
        "module_abi_version": model.module_abi_version,
    }


def cache_settings(setup: Setup) -> dict[str, Any]:
    """Return the cache parameters of every generation."""
    return {
        "block_seq_stride": setup.model.config.block_seq_stride,
        "attention_head_count_kv": setup.model.config.attention_head_count_kv,
        "device_block_count": setup.config.page_count,
    }


def type_of(name: str, known: Any) -> Any:
    """Return the release's data type of that name. Raises EngineError if it has none."""
    if not isinstance(found := getattr(known, name, None), type(known.float16)):
        raise EngineError(
            f"This release of shortfin has no type {name!r} for keys, values or scores. Export the"
            " model with float16, bfloat16 or float32."
        )
    return found


def parameters_of(function: Any, without: Iterable[str] = ()) -> set[str]:
    """Return the parameter names of a function or dataclass, except those in `without`."""
    if isinstance(function, type) and hasattr(function, "__dataclass_fields__"):
        names = {f.name for f in dataclass_fields(function)}
    else:
        names = set(inspect.signature(function).parameters)
    return names - {"self", *without}


def share_out(
    options: Mapping[str, object], offers: Mapping[str, set[str]]
) -> dict[str, dict[str, object]]:
    """Pass each option to the parts of the engine that have a parameter of that name.

    Raises EngineError, with the known options, for an unknown one.
    """
    shares: dict[str, dict[str, object]] = {part: {} for part in offers}
    for name, value in options.items():
        if name in _BATCH_SIZES.values():  # `model_settings` has them
            continue
        for part, names in offers.items():
            if name in names:
                shares[part][name] = value
                break
        else:
            offered = ", ".join(sorted(set().union(*offers.values())))
            release = installed_release()
            raise EngineError(f"shortfin {release} has no option {name!r}. It has {offered}.")
    return shares
