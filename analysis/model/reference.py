"""The reference decoder: the same compiled program, with one sequence and its own cache.

It calls the engine's functions (``prefill_bs{N}``, ``decode_bs{N}``) through `iree.runtime`, so a
difference can only come from the engine's arguments or from its cache.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.core.errors import ModelError
from analysis.model.artifacts import ModelArtifacts

Logits = NDArray[np.float32]
# Padding rows write to this page, which no sequence owns.
_PADDING_PAGE = 0


def iree_runtime() -> Any:
    """Return the module `iree.runtime`. Raises ModelError if it is not installed."""
    try:
        import iree.runtime as runtime
    except ImportError:
        raise ModelError(
            "No IREE runtime is installed in this environment; install iree-base-runtime of the"
            " same version as shortfin."
        ) from None
    return runtime


class ReferenceDecoder:
    """Decodes greedily through a compiled model, one sequence at a time.

    `vmfb` is the program, compiled with the version of the installed runtime. Threads can share a
    decoder (calls are serialised), but not a sequence. Raises ModelError if iree-base-runtime is
    missing, or if the program or the weights cannot be loaded.
    """

    def __init__(self, model: ModelArtifacts, vmfb: Path) -> None:
        self.model = model
        self._lock = threading.Lock()
        self._numpy_dtype = _cache_dtype(model)
        runtime = self._runtime = iree_runtime()
        try:
            # local-sync computes in the caller's thread, so there are no idle threads.
            self._config: Any = runtime.Config("local-sync")
            index = runtime.ParameterIndex()
            for weights in model.parameters:
                index.load(str(weights))
            instance = self._config.vm_instance
            parameters = runtime.create_io_parameters_module(
                instance, index.create_provider(scope="model")
            )
            program = runtime.VmModule.mmap(instance, str(vmfb))
            # The returned modules keep the context alive.
            *_, self._module = runtime.load_vm_modules(parameters, program, config=self._config)
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise ModelError(
                f"{vmfb} cannot be run by the installed iree-base-runtime ({reason}); compile it"
                " with iree-base-compiler of the same version."
            ) from error
        self._prefill_rows, self._prefill = self._smallest("prefill")
        self._decode_rows, self._decode = self._smallest("decode")

    def generate(self, token_ids: Sequence[int], n: int, *, end: int | None = None) -> list[int]:
        """Return the `n` token ids that greedily follow `token_ids`; `end` is the last if given."""
        sequence = self.start(token_ids, capacity=len(token_ids) + n)
        answer = [sequence.next_token]
        while len(answer) < n and answer[-1] != end:
            sequence.step(answer[-1])
            answer.append(sequence.next_token)
        return answer[:n]

    def start(self, token_ids: Sequence[int], *, capacity: int | None = None) -> ReferenceSequence:
        """Prefill `token_ids` into a fresh, zeroed cache with room for `capacity` tokens.

        The capacity is the model's max_seq_len by default. Raises ModelError if there are no tokens
        or more than the capacity.
        """
        return ReferenceSequence(self, token_ids, capacity or self.model.config.max_seq_len)

    def recompute(
        self, calls: Iterable[Mapping[str, Any]], pages: int, row: int, length: int
    ) -> tuple[Logits, NDArray[Any]]:
        """Make an engine's calls again, on `pages` zeroed pages.

        A call has the arguments that the device got (`phase`, `tokens`, `seq_lens`,
        `start_positions` and `block_tables`, as in the table `invocations`), or `copy` with the
        source and the target of a copied page. Return the logits of the next token of a row of the
        last call, float32 ``[vocab]``, and the first `length` slots of its block table, as
        `ReferenceSequence.keys_values` gives them. Raises ModelError if a call cannot be made.
        """
        config = self.model.config
        empty = np.zeros((pages, config.page_elements), dtype=self._numpy_dtype)
        slab, result = self._upload(empty), None
        call: Mapping[str, Any] = {}
        for call in calls:
            if "copy" in call:
                held, (source, target) = np.array(slab.to_host()), call["copy"]
                held[target] = held[source]
                slab = self._upload(held)
                continue
            phase = call["phase"]
            names = ["tokens", "seq_lens", "start_positions", "block_tables"]
            if phase == "prefill":
                starts = ["start_positions"] if config.has_prefill_position else []
                names = ["tokens", *starts, "seq_lens", "block_tables"]
            try:
                function = self._module[f"{phase}_bs{len(call['tokens'])}"]
                arguments = [self._upload(np.array(call[name], dtype=np.int64)) for name in names]
                with self._lock:
                    result = function(*arguments, slab)
            except (KeyError, TypeError, ValueError) as error:
                raise ModelError(f"A recorded {phase} cannot be computed again: {error}.") from None
        if result is None:
            raise ModelError("There is no call to compute again.")
        logits = np.array(result.to_host(), dtype=np.float32)[row]
        start = (call["start_positions"] or (0,) * (row + 1))[row]
        last = call["seq_lens"][row] - 1 - start if call["phase"] == "prefill" else 0
        table = [page if 0 <= page < pages else _PADDING_PAGE for page in call["block_tables"][row]]
        held = np.array(slab.to_host())[table].reshape(-1, *config.page_shape)
        slots = np.moveaxis(held, 3, 1)
        return logits[last], slots.reshape(-1, *slots.shape[2:])[:length]

    def _smallest(self, phase: str) -> tuple[int, Any]:
        config = self.model.config
        sizes = config.prefill_batch_sizes if phase == "prefill" else config.decode_batch_sizes
        for size in sizes:
            try:
                return size, self._module[f"{phase}_bs{size}"]
            except KeyError:
                continue
        raise ModelError(
            f"The compiled model exports {phase} for none of the batch sizes that config.json"
            " lists; compile it anew."
        )

    def _upload(self, array: NDArray[Any]) -> Any:
        return self._runtime.asdevicearray(self._config.device, array)

    def _call(self, function: Any, *arguments: Any) -> Logits:
        with self._lock:
            result = function(*arguments)
            return np.array(result.to_host(), dtype=np.float32)


class ReferenceSequence:
    """One sequence with its own cache, made by `ReferenceDecoder.start`.

    `tokens` are the token ids whose keys and values are in the cache, `logits` those of the next
    token, float32 ``[vocab]``, `prompt_logits` those at each position of the prompt, float32
    ``[prompt, vocab]``, and `block_ids` the sequence's pages, in order.
    """

    def __init__(self, decoder: ReferenceDecoder, token_ids: Sequence[int], capacity: int) -> None:
        length = len(token_ids)
        if not 0 < length <= capacity:
            raise ModelError(
                f"A sequence of {length} tokens does not fit a reference cache for 1 to {capacity};"
                " shorten it or ask for more capacity."
            )
        self._decoder = decoder
        self.capacity = capacity
        self.tokens = [int(token) for token in token_ids]
        config = decoder.model.config
        self._stride = config.block_seq_stride
        pages = math.ceil(capacity / self._stride)
        self.block_ids = tuple(range(1, pages + 1))
        empty = np.zeros((pages + 1, config.page_elements), dtype=decoder._numpy_dtype)
        self._slab = decoder._upload(empty)
        rows = decoder._prefill_rows
        blocks = math.ceil(length / self._stride)
        tokens = np.zeros((rows, blocks * self._stride), dtype=np.int64)
        tokens[0, :length] = self.tokens
        arguments = [tokens, _column(rows, length, 1), self._block_table(rows, blocks)]
        if config.has_prefill_position:
            arguments.insert(1, _column(rows, 0, 0))
        logits = decoder._call(
            decoder._prefill, *(decoder._upload(a) for a in arguments), self._slab
        )
        self.prompt_logits: Logits = logits[0, :length]
        self.logits: Logits = logits[0, length - 1]

    @property
    def next_token(self) -> int:
        """The greedy choice."""
        return int(np.argmax(self.logits))

    @property
    def probabilities(self) -> Logits:
        """Softmax of `logits`, float32 ``[vocab]``."""
        raised = np.exp(self.logits - self.logits.max())
        return np.asarray(raised / raised.sum(), dtype=np.float32)

    def step(self, token: int, *, seq_len: int | None = None) -> Logits:
        """Append `token` by one decode and return the next logits, float32 ``[vocab]``.

        `seq_len` is the number of slots to read. Another number than the default shows the effect
        of wrong seq_lens.
        """
        position = len(self.tokens)
        if position >= self.capacity:
            raise ModelError(
                f"The reference cache is full at {self.capacity} tokens; ask for more capacity."
            )
        decoder = self._decoder
        rows = decoder._decode_rows
        tokens = _column(rows, int(token), 0)[:, None]
        table = self._block_table(rows, position // self._stride + 1)
        logits = decoder._call(
            decoder._decode,
            decoder._upload(tokens),
            decoder._upload(_column(rows, seq_len or position + 1, 1)),
            decoder._upload(_column(rows, position, 0)),
            decoder._upload(table),
            self._slab,
        )
        self.tokens.append(int(token))
        self.logits = logits[0, 0]
        return self.logits

    def read_pages(self) -> NDArray[Any]:
        """Copy the pages, ``[pages, layers, 2 (K, V), 16, kv heads, head dimension]``."""
        with self._decoder._lock:
            slab = np.array(self._slab.to_host())
        return slab[list(self.block_ids)].reshape(-1, *self._decoder.model.config.page_shape)

    def write_pages(self, pages: NDArray[Any]) -> None:
        """Replace the contents of the sequence's pages (shape as `read_pages` gives them)."""
        with self._decoder._lock:
            slab = np.array(self._slab.to_host())
            slab[list(self.block_ids)] = pages.reshape(len(self.block_ids), -1)
            self._slab = self._decoder._upload(slab)

    def keys_values(self) -> NDArray[Any]:
        """Keys and values slot by slot: ``[tokens, layers, 2 (K, V), kv heads, head dimension]``.

        Keys are stored after the rotary embedding.
        """
        slots = np.moveaxis(self.read_pages(), 3, 1)
        return slots.reshape(-1, *slots.shape[2:])[: len(self.tokens)]

    def _block_table(self, rows: int, blocks: int) -> NDArray[np.int64]:
        table = np.full((rows, blocks), _PADDING_PAGE, dtype=np.int64)
        own = self.block_ids[:blocks]
        table[0, : len(own)] = own
        return table


def _column(rows: int, first: int, others: int) -> NDArray[np.int64]:
    column = np.full(rows, others, dtype=np.int64)
    column[0] = first
    return column


def _cache_dtype(model: ModelArtifacts) -> np.dtype[Any]:
    name = model.config.kv_cache_dtype
    if name not in {"float16", "float32"}:
        raise ModelError(
            f"The reference decoder reads caches of float16 and float32, not of {name}; export the"
            " model with one of these."
        )
    return np.dtype(name)
