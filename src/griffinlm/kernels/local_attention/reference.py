"""Multi-query attention over a ring of past keys and a chunk of new ones; global attention never overwrites it."""

import torch
from torch import Tensor

from griffinlm.kernels.token_blocks import is_blocked

QUERY_BLOCK_TOKENS = 256


def ring_positions(num_tokens: Tensor, num_slots: int) -> Tensor:
    """Position held by every slot: the newest p < num_tokens with p = slot (mod num_slots); negative where none is.

    Args:
        num_tokens: [B], tokens of the document read so far.

    Returns:
        [B, num_slots].
    """
    newest = num_tokens[:, None] - 1
    return newest - (newest - torch.arange(num_slots, device=num_tokens.device)) % num_slots


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    positions: Tensor,
    window_tokens: int | None,
    ring: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Tensor:
    """softmax(q k / sqrt(head size)) v over the query's own document: itself and the `window_tokens` before it.

    Token t sees the token d places before it exactly where d <= min(positions[t], window_tokens): its position says how
    many predecessors its document has, in this chunk or in the ring. Queries are taken in blocks, so that memory grows
    with the window and not with the square of the length.

    Args:
        query: [B, T, N, H]. key, value: [B, T, H]. positions: [B, T], -1 for padding (at the end of a row only).
        window_tokens: None for global attention.
        ring: keys [B, S, H] and values [B, S, H] of the tokens before this chunk, and num_tokens [B] as in
            `ring_positions`; None where nothing was read before.

    Returns:
        [B, T, N, H]; rows of padding hold finite values without meaning.
    """
    num_rows, num_tokens = query.shape[:2]
    device = query.device
    reach = positions.clamp(min=0)
    if window_tokens is not None:
        reach = reach.clamp(max=window_tokens)
    index = torch.arange(num_tokens, device=device)
    if ring is None and _sees_all_before(query, positions, window_tokens):
        return _attend(query, key, value, None)
    block = max(QUERY_BLOCK_TOKENS, window_tokens // 2 if window_tokens is not None else 0)
    outputs = []
    for start in range(0, num_tokens, block):
        stop = min(start + block, num_tokens)
        first = 0 if window_tokens is None else max(0, start - window_tokens)
        places = index[None, first:stop].expand(num_rows, -1)
        keys, values = key[:, first:stop], value[:, first:stop]
        if ring is not None and (window_tokens is None or start < window_tokens):
            ring_keys, ring_values, num_before = ring
            # A ring token's place on the chunk's own axis, negative: position minus the tokens read before.
            before = ring_positions(num_before, ring_keys.shape[1]) - num_before[:, None]
            places = torch.cat([before, places], dim=1)
            keys = torch.cat([ring_keys.to(key.dtype), keys], dim=1)
            values = torch.cat([ring_values.to(value.dtype), values], dim=1)
        distance = index[None, start:stop, None] - places[:, None]
        visible = (distance >= 0) & (distance <= reach[:, start:stop, None])
        outputs.append(_attend(query[:, start:stop], keys, values, visible[:, None]))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


def _sees_all_before(query: Tensor, positions: Tensor, window_tokens: int | None) -> bool:
    """Whether every row is one document from its beginning and within the window, so that causality is all there is.

    Looked at on a CPU only, where that costs less than half of the products; a GPU would wait for the answer.
    """
    num_tokens = positions.shape[1]
    if not is_blocked(query) or (window_tokens is not None and num_tokens > window_tokens + 1):
        return False
    return bool((positions == torch.arange(num_tokens)).all())


def _attend(query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None) -> Tensor:
    """[B, T, N, H] of queries [B, T, N, H] over keys and values [B, S, H]; without a mask, causal with S = T."""
    num_heads = query.shape[2]
    out = torch.nn.functional.scaled_dot_product_attention(
        query.transpose(1, 2),
        key[:, None].expand(-1, num_heads, -1, -1),
        value[:, None].expand(-1, num_heads, -1, -1),
        attn_mask=visible,
        is_causal=visible is None,
    )
    return out.transpose(1, 2)


def write_ring(ring: Tensor, new: Tensor, positions: Tensor) -> Tensor:
    """The ring after a chunk: slot p mod S holds the newest token whose position in the last document is p.

    Args:
        ring: [B, S, H]. new: [B, T, H]. positions: [B, T], -1 for padding (at the end of a row only).

    Returns:
        [B, S, H] in the type of the ring.
    """
    num_slots, num_tokens = ring.shape[1], new.shape[1]
    real = positions >= 0
    # Tokens that a later real one of the row overwrites or, by starting a document, makes invisible are left out,
    # so that no slot is written twice.
    rank = torch.arange(num_tokens, device=new.device)
    last = real.sum(dim=1, keepdim=True) - 1
    last_start = torch.where(positions == 0, rank, -1).amax(dim=1, keepdim=True)
    kept = real & (rank > last - num_slots) & (rank >= last_start)
    slot = torch.where(kept, positions % num_slots, num_slots)
    index = slot[..., None].expand(-1, -1, new.shape[2])
    spare = torch.cat([ring, ring[:, :1]], dim=1)
    return spare.scatter(1, index, new.to(ring.dtype))[:, :num_slots]
