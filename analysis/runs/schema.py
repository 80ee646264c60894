"""The schema of a run's tables: every column with its type, unit and meaning."""

from __future__ import annotations

import pyarrow as pa

SCHEMA_VERSION = 3
"""The version that is written. Versions 1 and 2 can be read, see `former`."""
OUTCOMES = (
    "ok", "wrong", "empty", "rejected", "cancelled", "error", "timeout", "engine_died",
)  # fmt: skip
FAILURES = tuple(name for name in OUTCOMES if name not in ("ok", "rejected", "cancelled"))
"""Outcomes of failed requests: every outcome except `ok`, `rejected`, `cancelled`."""
TRIAL_STATUS = ("ok", "engine_died", "hung", "crashed")

EVENT_KINDS = {
    "submitted": "a request was submitted; `tokens` is its prompt",
    "first_token": "the first token of a request arrived",
    "token": "a further token of a request arrived",
    "chosen": "the next token of a request was chosen, from the logits with this `digest`",
    "answered": "the engine delivered an answer, `tokens`; `value` is the number of answers",
    "done": "a request ended with this `outcome`; `value` is the number of missing tokens",
    "acquire": "pages were taken from the pool",
    "alloc_failed": "the pool had too few free pages for an allocation of `wanted` pages",
    "free": "pages were returned to the pool",
    "pages_held": "a request holds these pages from now on",
    "pages_dropped": "a request no longer holds these pages",
    "duplicate": "pages that duplicate cached ones were listed, to be freed at the next release",
    "quarantined": "a treatment put freed pages into quarantine",
    "copy": "a page was copied; pages are source and target",
    "match": "a prefix was looked up in the trie, up to this node",
    "detached": "a node's parent pointer, `parent`, differs from the node that has it as a child",
    "unprotected": "a request is executed, but the node that it continues has no reference",
    "unlisted": "these pages were looked up in the cache's list of allocated pages, but not found",
    "create": "a node with these `tokens` was added to the trie",
    "node_overwritten": "a new node with the same tokens replaced a node under its parent",
    "unlink": "a node was removed from the trie",
    "evict": "pages were evicted from the trie; `wanted` were needed",
    "reference": "the references to a node changed",
    "leaf_added": "a node was added to the set of leaves",
    "leaf_removed": "a node was removed from the set of leaves",
    "operation": "an operation of the cache ended",
    "failed": "an operation of the cache raised the error in `message`",
    "memory": "the resident memory of the process is `value`; see also `page_table_bytes`",
    "worker_died": "a worker of the engine died with the error in `message`",
    "late": "the engine ended a request with this `outcome` after its client gave up",
    "invocation_unfinished": "invocation `value`, with this `phase` and `request_ids`, began here"
    " and had not finished when the recording ended",
    "unfinished": "an operation of the cache began here and had not ended when the recording ended",
    "cut": "the recording ends here, at most `late_s` before its process; `request_ids` have no"
    " end in it",
    "stall": "a request was given up; `stall` has its state and the stacks of all threads",
    "duplicate_page": "a request's list of pages has these more than once",
    "nonfinite": "a page of an invocation holds NaN or infinity, first in slot `value`",
    "checksums": "`coverage` of the byte checks, or in `message` why there are none",
    "bytes_changed": "slots of a page changed without a write: `changed_bytes`",
    "bytes_kept": "slots hold their old bytes, or zeros, after invocation `value` wrote them:"
    " `kept_bytes`",
    "written_after_free": "a page in quarantine was written after it was freed",
    "snapshot": "a snapshot was taken at this `moment`",
    "observer_error": "recording failed at this point with the error in `message`",
}
"""Meaning of each event kind, with the columns it uses in addition to the common ones."""
FAULT = "fault:"
"""Prefix of the names of treatments that inject a fault."""
MOMENTS = ("before", "after", "failure", "asked")

_TEXT, _INT, _REAL = pa.string(), pa.int64(), pa.float64()
_INTS, _TEXTS = pa.list_(pa.int32()), pa.list_(pa.string())
_REALS = pa.list_(pa.list_(_REAL))


def _struct(**fields: pa.DataType) -> pa.StructType:
    return pa.struct(list(fields.items()))


BLOCKS = pa.list_(_struct(layer=_INT, kind=_TEXT, head=_INT))
"""Parts of a slot: layer, K or V, and head."""
INJECTION = _struct(
    request_id=_TEXT, other_request_id=_TEXT, page=_INT, invocation_id=_INT, seq=_INT,
    rule=_TEXT, cause=_TEXT,
)  # fmt: skip
"""Where a fault was injected, and the expected rule and cause."""
CHANGED_ARGUMENT = _struct(
    argument=_TEXT, row=_INT, column=_INT, filled=_INT, read=_INT, moment=_TEXT
)
HOLDER = _struct(request_id=_TEXT, pages=_INTS)
NODE = _struct(node=_INT, parent=_INT, page=_INT, tokens=_INTS, ref_count=_INT, leaf=pa.bool_())
CONFLICT = _struct(code=_TEXT, page=_INT, node=_INT, times=_INT, request_ids=_TEXTS)
STALL = _struct(
    state=_TEXT, phase=_TEXT, invocations=_INTS,
    locks=pa.list_(_struct(lock=_TEXT, thread=_TEXT, seconds=_REAL)),
    threads=pa.list_(_struct(thread=_TEXT, frames=_TEXTS)),
)  # fmt: skip
COVERAGE = _struct(
    mode=_TEXT, followed=_INT, page_count=_INT, invocations=_INT, pages_read=_INT,
    slots_written=_INT, pages_offered=_INT, not_judged=_INTS, undecided=_INTS, unchecked=_INT,
)  # fmt: skip
CHANGED_BYTES = _struct(
    slots=_INTS, blocks=BLOCKS, moment=_TEXT, since_invocation=_INT, seen_invocation=_INT,
    holders=_TEXTS, copy_of=_INT, zeros=pa.bool_(), from_page=_INT, from_slot=_INT,
)  # fmt: skip
KEPT_BYTES = pa.list_(
    _struct(slot=_INT, whole=pa.bool_(), blocks=BLOCKS, zeros=pa.bool_(), other_token=pa.bool_())
)


def _column(name: str, kind: pa.DataType, doc: str, unit: str = "", null: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=null, metadata={"doc": doc, "unit": unit})


def _maybe(name: str, kind: pa.DataType, doc: str, unit: str = "") -> pa.Field:
    return _column(name, kind, doc, unit, null=True)


_TRIAL_ID = _column("trial_id", _TEXT, "the trial that this row belongs to")

_COLUMNS = {
    "trials": [
        _column("run_id", _TEXT, "the run that this trial belongs to"),
        _column("trial_id", _TEXT, "one configuration and repeat; unique within a run"),
        _column("release", _TEXT, "version of shortfin, such as 3.1.0"),
        _column("device", _TEXT, "where the engine ran: local-task or amdgpu"),
        _column("prefix_sharing", _TEXT, "algorithm of the prefix cache: none or trie"),
        _column("page_count", _INT, "size of the page pool", "pages"),
        _column("batch_sizes", _INTS, "batch sizes that the model was compiled for", "rows"),
        _column("concurrency", _INT, "client threads, each with one request at a time", "requests"),
        _column("repeat", _INT, "number of the repeat of its configuration, from 0"),
        _column("workload", _TEXT, "name of the workload"),
        _column("treatments", _TEXTS, "names of the treatments of the engine"),
        _column("options", _TEXT, "further engine options, a JSON object"),
        _maybe("page_tokens", _INT, "tokens of a page; null if the engine did not start", "tokens"),
        _maybe("supported_fixes", _TEXTS, "fixes known for this release of shortfin"),
        _maybe("git_commit", _TEXT, "commit of the checkout; null without one"),
        _maybe("seed", _INT, "seed of the prompts"),
        _column("status", _TEXT, f"how the trial ended: {', '.join(TRIAL_STATUS)}"),
        _maybe(
            "status_detail",
            _TEXT,
            "details of a trial that did not end normally, or was not fully recorded or checked",
        ),
        _maybe("exit_signal", _INT, "the signal that ended the trial's process"),
        _column("duration_s", _REAL, "from the start of the engine to the end of the trial", "s"),
        _maybe("peak_rss_bytes", _INT, "largest resident memory of the trial's process", "bytes"),
        _maybe("engine_log", _TEXT, "output of the engine"),
        _maybe("recording", _TEXT, "what was recorded: nothing, events, or events and snapshots"),
        _maybe("injected", pa.bool_(), "whether a control's fault was injected; null: no control"),
        _maybe("injection", INJECTION, "where a control's fault was injected"),
        _maybe("target", _TEXT, "what answered: engine, http, or a server's address"),
    ],
    "requests": [
        _column("request_id", _TEXT, "unique within its trial"),
        _TRIAL_ID,
        _maybe("client", _INT, "which client thread sent it, from 0"),
        _maybe("position", _INT, "its index in its client's sequence, from 0"),
        _maybe("family", _TEXT, "kind of prompt within the workload"),
        _column("prompt", _TEXT, "the prompt"),
        _maybe("prompt_tokens", _INTS, "token ids of the previous column"),
        _maybe("expected_text", _TEXT, "what the answer must start with"),
        _maybe("reference_tokens", _INTS, "answer of the reference decoder, as token ids"),
        _maybe("text", _TEXT, "the engine's answer"),
        _maybe("tokens", _INTS, "token ids of the previous column"),
        _column("outcome", _TEXT, f"one of {', '.join(OUTCOMES)}"),
        _maybe("error", _TEXT, "the engine's message when it rejected or failed"),
        _maybe(
            "first_divergence",
            _INT,
            "first token that differs from the reference, from 0",
            "tokens",
        ),
        _maybe("submitted_s", _REAL, "time of submission, since the engine started", "s"),
        _maybe("latency_s", _REAL, "from submission to the last token", "s"),
        _maybe("ttft_s", _REAL, "from submission to the first token", "s"),
        _maybe("retries", _INT, "number of times that it was rejected and sent again"),
        _maybe("cached_tokens", _INT, "prompt tokens found in the prefix cache", "tokens"),
        _maybe("evictions_during", _INT, "pages evicted while it was served", "pages"),
        _maybe("pages_before", _INT, "pages in use before it", "pages"),
        _maybe("pages_after", _INT, "pages in use after it", "pages"),
        _maybe("unchecked", _INT, "its invocations that could not be checked by every rule"),
    ],
    "invocations": [
        _column("invocation_id", _INT, "number of this call of the compiled model, from 0"),
        _TRIAL_ID,
        _column("phase", _TEXT, "prefill or decode"),
        _column("rows", _INT, "rows with a request; the others are padding", "rows"),
        _maybe("batch_size", _INT, "all rows of the call, including padding", "rows"),
        _maybe("request_ids", _TEXTS, "the request of each row that has one"),
        _maybe("tokens", pa.list_(_INTS), "token ids of every row, as passed to the device"),
        _maybe("seq_lens", _INTS, "length that each row attends to", "tokens"),
        _maybe("start_positions", _INTS, "position of each row's first token", "tokens"),
        _maybe("block_tables", pa.list_(_INTS), "pages of each row, in order"),
        _maybe("seq", _INT, "sequence number of its start"),
        _maybe("end_seq", _INT, "sequence number of its end"),
        _maybe("thread", _TEXT, "worker that called it"),
        _maybe("t_s", _REAL, "time of its start, since the engine started", "s"),
        _maybe("duration_s", _REAL, "until the engine had its results", "s"),
        _maybe("error", _TEXT, "the error that the call raised"),
        _maybe("top_tokens", pa.list_(_INTS), "most likely next tokens of each request's row"),
        _maybe("top_logprobs", _REALS, "log probabilities of these tokens, from the engine"),
        _maybe("result_tokens", _INTS, "argmax of each request's row; -1 if NaN"),
        _maybe("result_digests", pa.list_(_INT), "digest of each request's logits"),
        _maybe(
            "changed",
            pa.list_(CHANGED_ARGUMENT),
            "arguments that had changed when the call returned, or later",
        ),
    ],
    "events": [
        _column("seq", _INT, "order of events within a trial"),
        _TRIAL_ID,
        _column("t_s", _REAL, "time since the engine started", "s"),
        _maybe("thread", _TEXT, "thread of the operation"),
        _maybe("request_id", _TEXT, "request of the operation"),
        _maybe("operation", _TEXT, "operation of the cache that it belongs to"),
        _column("kind", _TEXT, f"kind of event, one of {', '.join(EVENT_KINDS)}"),
        _maybe("pages", _INTS, "page numbers"),
        _maybe("free_pages", _INT, "pages left in the pool", "pages"),
        _maybe("node", _INT, "node of the trie; 0 is the root"),
        _maybe("parent", _INT, "its parent"),
        _maybe("ref_before", _INT, "references to it before"),
        _maybe("ref_count", _INT, "references to it afterwards"),
        _maybe("tokens_hit", _INT, "tokens found in the trie", "tokens"),
        _maybe("tokens_missed", _INT, "tokens not found there", "tokens"),
        _maybe(
            "value", _INT, "token id, missing tokens, answers, invocation, slot or bytes: by kind"
        ),
        _maybe("tokens", _INTS, "token ids of a prompt, an answer, or a node"),
        _maybe("digest", _INT, "CRC-32 of the logits that a token was chosen from"),
        _maybe("wanted", _INT, "number of pages needed", "pages"),
        _maybe("outcome", _TEXT, "outcome of a request for the engine"),
        _maybe("moment", _TEXT, "moment of a snapshot"),
        _maybe("message", _TEXT, "text of an error"),
        _maybe("phase", _TEXT, "prefill or decode, of an unfinished invocation"),
        _maybe("request_ids", _TEXTS, "requests of an unfinished invocation, or without end"),
        _maybe("late_s", _REAL, "time from the end of a cut recording to that of its process", "s"),
        _maybe("page_table_bytes", _INT, "size of the page table", "bytes"),
        _maybe("stall", STALL, "state of a request that was given up, and all threads"),
        _maybe("coverage", COVERAGE, "which bytes of the pages were checked"),
        _maybe("changed_bytes", CHANGED_BYTES, "slots whose bytes changed without a write"),
        _maybe("kept_bytes", KEPT_BYTES, "written slots that kept their bytes"),
        _maybe("locks", _TEXTS, "locks of the cache that were held during a change"),
        _maybe("stack", _TEXT, "stack in the engine's code, if recorded"),
    ],
    "snapshots": [
        _maybe("request_id", _TEXT, "request of the snapshot"),
        _TRIAL_ID,
        _column("moment", _TEXT, f"one of {', '.join(MOMENTS)}"),
        _maybe("seq", _INT, "sequence number of its event"),
        _maybe("t_s", _REAL, "time since the engine started", "s"),
        _maybe("page_count", _INT, "size of the page pool", "pages"),
        _maybe("free", _INT, "pages in the pool", "pages"),
        _maybe("live", _INT, "pages held by requests", "pages"),
        _maybe("cached", _INT, "pages held by the prefix cache alone", "pages"),
        _maybe("leaked", _INT, "pages without an owner", "pages"),
        _maybe("nodes", _INT, "nodes of the trie, without its root"),
        _maybe("leaves", _INT, "leaves of the trie, in the engine's set"),
        _maybe("consistent", pa.bool_(), "whether no operation of the cache ran meanwhile"),
        _maybe("states", _TEXT, "a letter for every page: f free, l live, c cached, x leaked"),
        _maybe("holders", pa.list_(HOLDER), "requests with the pages that they hold"),
        _maybe("trie", pa.list_(NODE), "the trie's nodes, parents first"),
        _maybe("duplicates", _INTS, "pages that duplicate cached ones, to be freed"),
        _maybe(
            "misplaced",
            pa.list_(_INTS),
            "nodes with a wrong parent pointer: node, pointer, actual parent",
        ),
        _maybe("allocated", _INTS, "the cache's own list of allocated pages"),
        _maybe("conflicts", pa.list_(CONFLICT), "pages that are in two states at once"),
    ],
    "findings": [
        _column("finding_id", _TEXT, "unique within its trial"),
        _TRIAL_ID,
        _column("rule", _TEXT, "name of the broken rule"),
        _maybe("cause", _TEXT, "how it was broken"),
        _maybe("severity", _TEXT, "wrong data (was read), or at risk"),
        _maybe("seq", _INT, "sequence number of the first violation"),
        _maybe("t_s", _REAL, "time since the engine started", "s"),
        _maybe("count", _INT, "number of such violations for this request"),
        _maybe("request_id", _TEXT, "affected request"),
        _maybe("other_request_id", _TEXT, "request that owns the data, or caused the violation"),
        _maybe("page", _INT, "page concerned"),
        _maybe("slot", _INT, "slot within the page"),
        _maybe("invocation_id", _INT, "invocation in which it was detected"),
        _column("message", _TEXT, "what happened, in one sentence"),
        _maybe("thread", _TEXT, "thread of the operation"),
        _maybe("stack", _TEXT, "stack in the engine's code"),
        _maybe("other_stack", _TEXT, "stack of the other request's operation"),
    ],
}
TABLES = {name: pa.schema(columns) for name, columns in _COLUMNS.items()}


CHOICES = {
    ("requests", "outcome"): OUTCOMES,
    ("trials", "status"): TRIAL_STATUS,
    ("events", "kind"): tuple(EVENT_KINDS),
    ("snapshots", "moment"): MOMENTS,
}
"""Allowed values of columns with few values."""
EVENT_EXTRAS = TABLES["events"].names[
    TABLES["events"].names.index("tokens") : TABLES["events"].names.index("locks")
]
"""Columns of `events` that only some kinds have."""
