"""A small llama-style decoder: RMSNorm, rotary embedding, grouped-query attention, SwiGLU.

Three ways to run it: plain causal attention (training), and prefill and decode over a paged cache
(export). The paged ones follow the interface that the released engines call, whose semantics come
from the paged_llm_v1 exporter of late 2024 (described in the project's model card, not copied from
it).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from analysis.model.architecture import Architecture


class Norm(nn.Module):  # type: ignore[misc]
    """Root-mean-square normalisation."""

    def __init__(self, width: int, eps: float, gain: float = 1.0) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.full((width,), gain))

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` normalised."""
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class Linear(nn.Linear):  # type: ignore[misc]
    """A matrix without bias, stored in the architecture's type; the product is of float32."""

    def __init__(self, inputs: int, outputs: int, sizes: Architecture) -> None:
        dtype = getattr(torch, sizes.weight_dtype)
        super().__init__(inputs, outputs, bias=False, dtype=dtype)
        self.is_flat = sizes.flat_products

    def forward(self, x: Tensor) -> Tensor:
        """Return the product with the matrix."""
        return _product(x, self.weight, self.is_flat)


class Block(nn.Module):  # type: ignore[misc]
    """The weights of one layer; attention itself is chosen by the caller."""

    query_norm: Callable[[Tensor], Tensor]
    key_norm: Callable[[Tensor], Tensor]

    def __init__(self, sizes: Architecture) -> None:
        super().__init__()
        inner, kv_inner = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
        self.attention_norm = Norm(sizes.width, sizes.norm_eps)
        self.query = Linear(sizes.width, inner, sizes)
        self.key = Linear(sizes.width, kv_inner, sizes)
        self.value = Linear(sizes.width, kv_inner, sizes)
        # Normalised queries and keys (as in OLMo 2 and Qwen3) make attention sharp.
        for name in ("query_norm", "key_norm"):
            norm = Norm(sizes.head_dim, sizes.norm_eps, gain=1.5)
            setattr(self, name, norm if sizes.query_key_norm else nn.Identity())
        self.out = Linear(inner, sizes.width, sizes)
        self.feed_norm = Norm(sizes.width, sizes.norm_eps)
        self.gate = Linear(sizes.width, sizes.hidden, sizes)
        self.up = Linear(sizes.width, sizes.hidden, sizes)
        self.down = Linear(sizes.hidden, sizes.width, sizes)

    def feed(self, x: Tensor) -> Tensor:
        """Return the feed-forward part of the layer."""
        x = self.feed_norm(x)
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class Decoder(nn.Module):  # type: ignore[misc]
    """The decoder. Tokens are int64, logits float32, the paged cache float16."""

    inverse_frequencies: Tensor

    def __init__(self, sizes: Architecture) -> None:
        super().__init__()
        self.sizes = sizes
        dtype = getattr(torch, sizes.weight_dtype)
        self.embedding = nn.Embedding(sizes.vocab, sizes.width, dtype=dtype)
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.layers))
        self.norm = Norm(sizes.width, sizes.norm_eps)
        if not sizes.tied_head:
            self.head = Linear(sizes.width, sizes.vocab, sizes)
        exponents = torch.arange(0, sizes.head_dim, 2, dtype=torch.float32) / sizes.head_dim
        self.register_buffer("inverse_frequencies", sizes.rope_base**-exponents)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        nn.init.normal_(self.embedding.weight, std=1.0)

    def forward(self, tokens: Tensor) -> Tensor:
        """Plain causal attention: tokens ``[rows, length]`` to logits ``[rows, length, vocab]``."""
        positions = torch.arange(tokens.shape[1])[None, :]
        turn = self._turn(positions)
        x = _wide(self.embedding(tokens))
        for block in self.blocks:
            q, k, v = self._project(block, x, turn)
            y = functional.scaled_dot_product_attention(
                q.transpose(1, 2),
                self._spread(k).transpose(1, 2),
                self._spread(v).transpose(1, 2),
                is_causal=True,
            )
            x = x + block.out(y.transpose(1, 2).flatten(2))
            x = x + block.feed(x)
        return self._logits(x)

    def prefill(self, tokens: Tensor, seq_lens: Tensor, block_ids: Tensor, slab: Tensor) -> Tensor:
        """Run whole prompts and write all their keys and values, padding included, to their pages.

        Shapes: tokens ``[rows, length]``, seq_lens ``[rows]``, block_ids ``[rows, length / 16]``,
        slab
        ``[pages, page elements]`` (float16, changed in place); returns ``[rows, length, vocab]``.
        """
        positions = torch.arange(tokens.shape[1])[None, :]
        turn = self._turn(positions)
        causal = positions[:, None, :] <= positions[:, :, None]
        within = positions[:, None, :] < seq_lens[:, None, None]
        mask = self._minus_infinity(torch.logical_and(causal, within))
        x = _wide(self.embedding(tokens))
        for index, block in enumerate(self.blocks):
            q, k, v = self._project(block, x, turn)
            self._write_pages(slab, index, block_ids, k, v)
            x = x + block.out(self._attend(q, k, v, mask))
            x = x + block.feed(x)
        return self._logits(x)

    def prefill_from(
        self,
        tokens: Tensor,
        start_positions: Tensor,
        seq_lens: Tensor,
        block_ids: Tensor,
        slab: Tensor,
    ) -> Tensor:
        """Run the rest of prompts whose first start_positions tokens are in their pages.

        Shapes: tokens ``[rows, length]``, start_positions and seq_lens ``[rows]``, block_ids
        ``[rows, blocks]``, slab ``[pages, page elements]`` (float16, changed in place); returns
        ``[rows, length, vocab]``. seq_lens include the start. Slots from the start on are written,
        padding included, and all slots below seq_lens are read from the pages.
        """
        page = self.sizes.page_tokens
        positions = start_positions[:, None] + torch.arange(tokens.shape[1])[None, :]
        turn = self._turn(positions)
        slots = torch.arange(page)[None, :] + page * torch.arange(block_ids.shape[1])[:, None]
        slots = slots.flatten()[None, None, :]
        causal = slots <= positions[:, :, None]
        mask = self._minus_infinity(torch.logical_and(causal, slots < seq_lens[:, None, None]))
        pages = torch.gather(block_ids, 1, positions // page).flatten()
        offsets = (positions % page).flatten()
        x = _wide(self.embedding(tokens))
        for index, block in enumerate(self.blocks):
            q, k, v = self._project(block, x, turn)
            self._write_slots(slab, index, pages, offsets, k.flatten(0, 1), v.flatten(0, 1))
            keys, values = self._read_pages(slab, index, block_ids)
            x = x + block.out(self._attend(q, keys, values, mask))
            x = x + block.feed(x)
        return self._logits(x)

    def decode(
        self,
        tokens: Tensor,
        seq_lens: Tensor,
        start_positions: Tensor,
        block_ids: Tensor,
        slab: Tensor,
    ) -> Tensor:
        """Run one token a row: write its slot, then attend to seq_lens slots of its pages.

        Shapes: tokens ``[rows, 1]``, seq_lens and start_positions ``[rows]``, block_ids
        ``[rows, blocks]``, slab ``[pages, page elements]`` (float16, changed in place); returns
        ``[rows, 1, vocab]``. Every slot below seq_lens is read, no matter which request
        wrote it.
        """
        page = self.sizes.page_tokens
        turn = self._turn(start_positions[:, None])
        slots = torch.arange(page)[None, :] + page * torch.arange(block_ids.shape[1])[:, None]
        mask = self._minus_infinity(slots.flatten()[None, :] < seq_lens[:, None])[:, None, :]
        own_page = torch.gather(block_ids, 1, start_positions[:, None] // page)[:, 0]
        x = _wide(self.embedding(tokens))
        for index, block in enumerate(self.blocks):
            q, k, v = self._project(block, x, turn)
            self._write_slots(slab, index, own_page, start_positions % page, k, v)
            keys, values = self._read_pages(slab, index, block_ids)
            x = x + block.out(self._attend(q, keys, values, mask))
            x = x + block.feed(x)
        return self._logits(x)

    def _logits(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        if self.sizes.tied_head:
            return _product(x, self.embedding.weight, self.sizes.flat_products)
        return self.head(x)

    def _turn(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        angles = positions[..., None].to(torch.float32) * self.inverse_frequencies
        return torch.cos(angles)[:, :, None, :], torch.sin(angles)[:, :, None, :]

    def _project(
        self, block: nn.Module, x: Tensor, turn: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Give queries, keys (both turned) and values, ``[rows, length, heads, head_dim]``."""
        x = block.attention_norm(x)
        q = block.query(x).unflatten(-1, (self.sizes.heads, self.sizes.head_dim))
        k = block.key(x).unflatten(-1, (self.sizes.kv_heads, self.sizes.head_dim))
        v = block.value(x).unflatten(-1, (self.sizes.kv_heads, self.sizes.head_dim))
        return _rotate(block.query_norm(q), turn), _rotate(block.key_norm(k), turn), v

    def _spread(self, x: Tensor) -> Tensor:
        """Repeat each key or value head for the query heads that share it."""
        return torch.repeat_interleave(x, self.sizes.heads // self.sizes.kv_heads, dim=2)

    @staticmethod
    def _minus_infinity(allowed: Tensor) -> Tensor:
        return torch.where(allowed, 0.0, float("-inf"))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Attention with `mask` (``[rows, queries, keys]``) added to the scores."""
        groups = self.sizes.heads // self.sizes.kv_heads
        rows, queries = q.shape[0], q.shape[1]
        q = q.unflatten(2, (self.sizes.kv_heads, groups)).permute(0, 2, 3, 1, 4)
        k = k.permute(0, 2, 3, 1)[:, :, None]
        v = v.permute(0, 2, 1, 3)[:, :, None]
        scores = torch.matmul(q, k) * self.sizes.head_dim**-0.5 + mask[:, None, None]
        y = torch.matmul(self._softmax(scores), v)
        return y.permute(0, 3, 1, 2, 4).reshape(rows, queries, -1)

    def _softmax(self, scores: Tensor) -> Tensor:
        """Softmax over the last dimension, page by page.

        The same sums as torch.softmax; but IREE 3.4 to 3.6 cannot vectorise a reduction over one
        dimension of unknown size, and here the inner one is a page.
        """
        pages = scores.unflatten(-1, (-1, self.sizes.page_tokens))
        raised = torch.exp(pages - pages.amax(dim=(-2, -1), keepdim=True))
        return (raised / raised.sum(dim=(-2, -1), keepdim=True)).flatten(-2)

    def _halves(self, slab: Tensor) -> Tensor:
        """See the slab as rows of one page's keys or values of one layer."""
        return slab.view(-1, self.sizes.page_elements // (2 * self.sizes.layers))

    def _write_pages(
        self, slab: Tensor, layer: int, block_ids: Tensor, k: Tensor, v: Tensor
    ) -> None:
        halves = self._halves(slab)
        first = block_ids.flatten() * (2 * self.sizes.layers) + 2 * layer
        for kind, x in enumerate((k, v)):
            pages = x.to(torch.float16).reshape(-1, halves.shape[1])
            halves.index_put_((first + kind,), pages)

    def _write_slots(
        self, slab: Tensor, layer: int, pages: Tensor, offsets: Tensor, k: Tensor, v: Tensor
    ) -> None:
        tokens = slab.view(-1, self.sizes.kv_heads * self.sizes.head_dim)
        for kind, x in enumerate((k, v)):
            rows = (pages * (2 * self.sizes.layers) + 2 * layer + kind) * self.sizes.page_tokens
            tokens.index_put_((rows + offsets,), x.to(torch.float16).flatten(1))

    def _read_pages(self, slab: Tensor, layer: int, block_ids: Tensor) -> tuple[Tensor, Tensor]:
        halves = self._halves(slab)
        first = block_ids * (2 * self.sizes.layers) + 2 * layer
        shape = (self.sizes.page_tokens, self.sizes.kv_heads, self.sizes.head_dim)
        keys, values = (
            halves[first + kind].unflatten(-1, shape).flatten(1, 2).to(torch.float32)
            for kind in (0, 1)
        )
        return keys, values


def _product(x: Tensor, matrix: Tensor, is_flat: bool) -> Tensor:
    """Return the product of ``[rows, length, inputs]`` with ``[outputs, inputs]``."""
    if not is_flat:
        return functional.linear(x, _wide(matrix))
    y = functional.linear(x.flatten(0, 1), _wide(matrix))
    return y.unflatten(0, (x.shape[0], x.shape[1]))


def _wide(x: Tensor) -> Tensor:
    # A conversion to its own type would still leave lines in the exported program.
    return x if x.dtype == torch.float32 else x.to(torch.float32)


def _rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = turn
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
