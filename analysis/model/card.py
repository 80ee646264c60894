"""The model card: how the model was made and what verification measured, written from both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from analysis.core.errors import ModelError
from analysis.model.overread import Overread
from analysis.model.verify import (
    ACCURACY_NEEDED,
    NEW_TOKENS,
    SENSITIVITY_NEEDED,
    Share,
    VerifyReport,
)
from analysis.workloads.prompts import LANES_FROM, PAGE_TOKENS


def write_model_card(directory: Path, report: VerifyReport) -> Path:
    """Write README.md of a model directory from its training.json and a report.

    Raises ModelError if training.json is missing or cannot be read.
    """
    try:
        facts = json.loads((directory / "training.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{directory / 'training.json'} cannot be read ({error}); make the model with "
            "`cachelab model train`."
        ) from None
    path = directory / "README.md"
    path.write_text(_card(facts, report), encoding="utf-8")
    return path


def _card(facts: dict[str, Any], report: VerifyReport) -> str:
    sizes = facts["sizes"]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return f"""# The counting model

A small llama-style decoder that continues number sequences, letter sequences and lists of words,
one token a character. It ships so that an LLM engine can be studied without a GPU: its right
answers are known by construction, and it gives them because it reads its context.

## What it is

- {sizes["layers"]} layers, width {sizes["width"]}, {sizes["heads"]} heads of {sizes["head_dim"]}
  sharing {sizes["kv_heads"]} key-value heads, feed-forward {sizes["hidden"]}:
  {facts["parameters"]:,} parameters, float32. RMSNorm, rotary embedding, grouped-query attention
  with normalised queries and keys, SwiGLU.
- `prefill_bs{{1,2,4,8}}` and `decode_bs{{1,2,4,8}}` over a paged float16 cache of
  {sizes["page_tokens"]} tokens a page, the interface of sharktank's export_paged_llm_v1. A page is
  [layers, (K, V), {sizes["page_tokens"]} tokens, kv heads, head dimension], keys after the rotary
  embedding. Attention is masked by adding minus infinity, and a slot below `seq_lens` is read
  also if another request wrote it.
- {sizes["vocab"]} tokens: `<unk>` (0), `<s>` (1, put before each prompt), `</s>` (2, never
  learned), digits, letters, space and `>`. At most {sizes["max_seq_len"]} tokens.

## How it was made

    {facts["command"]}

{facts["steps"]:,} steps over {facts["tokens"]:,} tokens in {facts["seconds"]:,} seconds on a CPU
with {facts["threads"]} threads ({versions}, Python {facts["python"]}). Plain next-token prediction
with causal attention over sequences from `analysis/workloads/prompts.py`: no dropout, no damaged
contexts. `checksums.json` covers every file that a model is loaded from.

## What it was measured to do

All prompts are held out: one stem in eight (a list, or a sequence's first two items; chosen by its
SHA-256) is never used in training, and the reported prompt's never. Everything runs through the
compiled program and the reference decoder, greedily. Shares are followed by 95% Wilson intervals.
Seed {report.seed}.

**The reported prompt** `1 2 3 4 5 ` is answered `{report.reported_answer}`:
{"right" if report.reported_right else "WRONG"}.

**Accuracy** (needed: {ACCURACY_NEEDED:.1%}). A trial is a prompt of 5 to 120 tokens; a hit is
that all {NEW_TOKENS} new tokens are the known continuation.

{_table(report.accuracy)}

**Sensitivity** (needed: {SENSITIVITY_NEEDED:.0%}). A trial prefills a prompt and another one of the
same family and length, each in its own cache, copies one full page of the other's keys and values
over the same page of the first, and decodes on. For sequences ({LANES_FROM} tokens and longer,
{NEW_TOKENS} new tokens) it is the last full page; for recall ({PAGE_TOKENS + 1} tokens and
longer, as many new tokens as the list is long) any full page. A hit is an answer that differs
from the undisturbed one.

{_table(report.sensitivity)}

Sequences shorter than {LANES_FROM} tokens rest on their last two items, often in the unfinished
page; nothing is claimed of them here.

**Lengths that are too long.** Answers of {NEW_TOKENS} tokens are decoded with the lengths of
shortfin 3.1.0, so that rows read on to the end of their last page, over slots that hold other
prompts of the same family and length. Each token is compared with the right one:
{Overread.sum(report.overread.values())} change.

**Without its context.** A hit is the right answer from the bos token and the last two tokens alone
(prompts of 10 tokens and longer):

{_table(report.last_two_tokens)}

and from the bos token and the last {PAGE_TOKENS} tokens (prompts of {LANES_FROM} tokens and
longer):

{_table(report.last_page)}
"""


def _table(shares: dict[str, Share]) -> str:
    lines = ["| family | hits | trials | share | 95% interval |", "|---|---|---|---|---|"]
    together = Share(sum(s.hits for s in shares.values()), sum(s.trials for s in shares.values()))
    for family, share in [*shares.items(), ("all", together)]:
        low, high = share.interval
        lines.append(
            f"| {family} | {share.hits} | {share.trials} | {share.share:.1%} "
            f"| {low:.1%} to {high:.1%} |"
        )
    return "\n".join(lines)
