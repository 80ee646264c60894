"""The release's own HTTP server, with the methods of an engine that clients use."""

from __future__ import annotations

import itertools
import re
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from analysis.core import children
from analysis.core.errors import EngineError, shown
from analysis.engine.completion import Completion, EngineDeath
from analysis.model.artifacts import load_model
from analysis.model.compile import compile_model
from analysis.model.tokenizer import ModelTokenizer
from analysis.shortfin import devices, http_server
from analysis.shortfin.config import EngineConfig
from analysis.shortfin.port import Answer, Setup
from analysis.shortfin.service import installed_service

START_TIMEOUT_S = 90.0
_CHECK_S, _HEALTH_TIMEOUT_S, _STOP_TIMEOUT_S = 0.1, 5.0, 5.0
_DEAD_WITHIN_S = 2.0
"""Longest time between a lost connection and the end of the process behind it."""
_USAGE_ERROR = 2
"""Exit status of a server that does not know an option."""
_HOST = re.compile(r"[\w.:-]+")
_numbers = itertools.count(1)


def address_of(target: str) -> tuple[str, int]:
    """Return host and port of an address such as http://127.0.0.1:8000. Raises EngineError."""
    with suppress(ValueError):  # UnicodeError is one, too
        parts = urlsplit(target)
        host = parts.hostname or ""
        host.encode("idna")
        if parts.scheme == "http" and _HOST.fullmatch(host) and parts.path in ("", "/"):
            return host, parts.port or 80
    raise EngineError(f"{shown(target)} is not the address of a server, as http://127.0.0.1:8000.")


class HttpEngine:
    """A server of the installed release, started here, or one that runs at `address`.

    Requests are sent as the reported test sent them: one POST each, with a text, answered by a
    text. So tokens are those of the text; a token that ended the answer is added if it is short.
    Nothing of the server can be observed or changed. Raises EngineError or ModelError if it cannot
    start or be reached.
    """

    def __init__(self, config: EngineConfig, *, log_dir: Path, address: str | None = None) -> None:
        self.config, self.log_dir = config, log_dir
        self.release, _ = installed_service()
        self.model = load_model(config.model, from_positions=config.prefills_from_positions)
        self.tokenizer = ModelTokenizer(self.model)
        self._eos = self.tokenizer.token_id(self.model.eos_token)
        self._command: list[str] = []
        self._port_holder: socket.socket | None = None
        self._not_started: EngineDeath | None = None
        if address is not None:
            self.device = "unknown"
            self.host, self.port = address_of(address)
        else:
            self.device, target = devices.resolve(
                config.device, config.hip_target, config.device_ids
            )
            vmfb = compile_model(self.model, batch_sizes=config.compiled_batch_sizes, target=target)
            self._port_holder = _free_port()
            self.host, self.port = self._port_holder.getsockname()
            setup = Setup("default", config, self.model, vmfb, self.device)
            self._command = http_server.command(setup, log_dir, self.port)
        self._log = log_dir / f"engine-server{next(_numbers)}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._lock = threading.Lock()
        self._open: dict[str, HTTPConnection] = {}
        """Connections of the requests that have not ended."""

    def __enter__(self) -> HttpEngine:
        self._started = time.monotonic()
        if self._command:
            # Up to 3.8, the server creates a directory in the home directory.
            alone = children.until_we_end("/usr/bin/env", f"HOME={self.log_dir}", *self._command)
            with self._log.open("wb") as log:
                self._process = children.start(alone, stdout=log, stderr=subprocess.STDOUT)
        try:
            self._wait_until_healthy()
        except BaseException:
            self.__exit__()
            raise
        finally:
            if self._port_holder is not None:
                self._port_holder.close()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.give_up(list(self._open))
        finally:
            if self._process is not None:
                self._process.terminate()
                with suppress(subprocess.TimeoutExpired):  # some releases do not end by themselves
                    self._process.wait(_STOP_TIMEOUT_S)
                children.kill_group(self._process)

    @property
    def died(self) -> EngineDeath | None:
        """The end of the server's process, or that it did not start; None while it runs."""
        if self._not_started is not None:
            return self._not_started
        if self._process is None or (status := self._process.poll()) is None:
            return None
        return EngineDeath(f"The server's process exited with status {status}.", self.log[-4000:])

    @property
    def log(self) -> str:
        """The output of the server; "" of one that was not started here."""
        return children.tail(self._log)

    def submit(
        self,
        prompt: str,
        max_new_tokens: int = 15,
        timeout_s: float = 60.0,
        request_id: str | None = None,
    ) -> Future[Completion]:
        """Send a prompt, and return the future of its completion; it never has an exception."""
        future: Future[Completion] = Future()
        name = request_id or uuid.uuid4().hex
        connection = HTTPConnection(self.host, self.port, timeout=timeout_s)
        expired = threading.Event()
        with self._lock:
            self._open[name] = connection

        def send() -> None:
            began = time.monotonic()
            expiry = threading.Timer(timeout_s, self._expire, [connection, expired])
            expiry.daemon = True
            expiry.start()
            tokens: tuple[int, ...] = ()
            text = ""
            try:
                answer = self._ask(connection, prompt, max_new_tokens, name)
                tokens, text = self._read(answer, max_new_tokens)
                outcome = "rejected" if answer.refused else "error" if answer.error else "ok"
                error = answer.error
                if outcome == "ok" and not tokens:
                    outcome = "empty"
            except _UnreadableAnswer as failure:
                outcome, error = "error", f"The answer could not be read: {failure}"
            except (OSError, HTTPException, ValueError) as failure:
                outcome, error = self._failed(name, failure)
                if expired.is_set():
                    outcome, error = "timeout", f"No answer within {timeout_s:g} s."
            finally:
                expiry.cancel()
                with self._lock:
                    self._open.pop(name, None)
                connection.close()
            latency_s = time.monotonic() - began
            ids = tuple(self.tokenizer.encode(prompt))
            future.set_result(
                Completion(
                    request_id=name, prompt=prompt, prompt_tokens=ids, tokens=tokens, text=text,
                    outcome=outcome, error=error, submitted_s=began - self._started,
                    latency_s=latency_s, ttft_s=None, token_s=(),
                )
            )  # fmt: skip

        threading.Thread(target=send, name=f"cachelab-http-{name}", daemon=True).start()
        return future

    def generate(self, prompt: str, max_new_tokens: int, timeout_s: float = 60.0) -> Completion:
        """Send one prompt and wait for its completion."""
        return self.submit(prompt, max_new_tokens, timeout_s).result(timeout_s + 10)

    def give_up(self, request_ids: Iterable[str]) -> None:
        """End the pending ones of these requests, by closing their connections."""
        with self._lock:
            pending = [self._open.pop(name, None) for name in request_ids]
        for connection in filter(None, pending):
            _cut(connection)

    @staticmethod
    def _expire(connection: HTTPConnection, expired: threading.Event) -> None:
        """End a request at its deadline; the timeout of a socket is one for each read."""
        expired.set()
        _cut(connection)

    def _ask(
        self, connection: HTTPConnection, prompt: str, max_new_tokens: int, request_id: str
    ) -> Answer:
        body = http_server.body_of(prompt, max_new_tokens, request_id)
        connection.connect()
        with self._lock:
            if request_id not in self._open:
                raise ConnectionAbortedError
        connection.request("POST", "/generate", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read()
        try:
            return http_server.answer_of(response.status, content)
        except (ValueError, LookupError, TypeError) as error:
            raise _UnreadableAnswer(f"{type(error).__name__}: {error}") from error

    def _read(self, answer: Answer, max_new_tokens: int) -> tuple[tuple[int, ...], str]:
        """Return the tokens of an answer's text, and the text of those that were asked for."""
        if answer.error is not None or not answer.text:
            return (), ""
        tokens = self.tokenizer.encode_answer(answer.text)[:max_new_tokens]
        if len(tokens) < max_new_tokens:
            tokens.append(self._eos)
        return tuple(tokens), self.tokenizer.decode(tokens)

    def _failed(self, request_id: str, failure: Exception) -> tuple[str, str]:
        """Return the outcome and the error of a request without a response."""
        with self._lock:
            given_up = request_id not in self._open
        if given_up:
            return "timeout", "The client gave the request up."
        deadline = time.monotonic() + _DEAD_WITHIN_S
        while self.died is None and self._process and time.monotonic() < deadline:
            time.sleep(_CHECK_S)
        if (death := self.died) is not None:
            return "engine_died", death.message
        return "error", f"The server did not answer: {type(failure).__name__}: {failure}"

    def _wait_until_healthy(self) -> None:
        """Wait until the server answers. If it crashes or hangs, it counts as dead from then on.

        Raises EngineError if it refuses its options, or if a server at an address does not answer.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            if self._process is not None and (status := self._process.poll()) is not None:
                last = (self.log.strip().splitlines() or ["no output"])[-1].strip()
                message = f"The server of shortfin {self.release} did not start: {last}"
                if status == _USAGE_ERROR:
                    raise EngineError(message)
                self._not_started = EngineDeath(message, self.log)
                return
            connection = HTTPConnection(self.host, self.port, timeout=_HEALTH_TIMEOUT_S)
            try:
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
                why = "it is not healthy"
            except (OSError, HTTPException) as error:
                why = str(error)
            finally:
                connection.close()
            if self._process is None:
                raise EngineError(
                    f"No shortfin server can be reached at http://{self.host}:{self.port}: {why}."
                )
            if time.monotonic() > deadline:
                self._not_started = EngineDeath(
                    f"The server of shortfin {self.release} was not healthy after"
                    f" {START_TIMEOUT_S:g} s: {why}.", self.log,
                )  # fmt: skip
                return
            time.sleep(_CHECK_S)


class _UnreadableAnswer(Exception):  # noqa: N818
    """An answer is not in the form of the release."""


def _cut(connection: HTTPConnection) -> None:
    with suppress(OSError, AttributeError):  # not connected yet, or not any more
        connection.sock.shutdown(socket.SHUT_RDWR)


def _free_port() -> socket.socket:
    """Return a socket on a free port, which keeps it from others until the server has it, too."""
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind((http_server.HOST, 0))
    return holder
