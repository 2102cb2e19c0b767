"""Causal depthwise convolution over a few tokens, aware of documents, with its tail as state."""

import torch
from torch import Tensor


def short_conv(
    x: Tensor, weight: Tensor, bias: Tensor, positions: Tensor, tail: Tensor | None, lengths: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """out[t] = bias + sum over s < K of weight[K-1-s] x[t-s], where a document's first tokens see nothing before them.

    A token at position p of its document has p predecessors in it, so tap s counts where positions[t] >= s.

    Args:
        x: [B, T, L]. weight: [K, L], the last tap multiplies the current token. bias: [L].
        positions: [B, T], place of each token in its document, -1 for padding (at the end of a row only).
        tail: [B, K-1, L], the inputs before this call; None is zeros.
        lengths: [B], real tokens in each row; None is all of them.

    Returns:
        out [B, T, L], and the tail [B, K-1, L] for the next call: the last K-1 real inputs.
    """
    num_taps, num_tokens = weight.shape[0], x.shape[1]
    past = num_taps - 1
    if tail is None:
        tail = x.new_zeros(x.shape[0], past, x.shape[2])
    padded = torch.cat([tail.to(x.dtype), x], dim=1)
    weight = weight.to(x.dtype)
    out = torch.addcmul(bias.to(x.dtype), x, weight[past])
    for s in range(1, num_taps):
        seen = (positions >= s)[..., None].to(x.dtype)
        out = torch.addcmul(out, padded[:, past - s : past - s + num_tokens], weight[past - s] * seen)
    return out, next_tail(x, tail, lengths)


def next_tail(x: Tensor, tail: Tensor, lengths: Tensor | None) -> Tensor:
    """[B, K-1, L], the last K-1 real inputs of a tail and the tokens x [B, T, L] behind it, in the type of x."""
    past, num_tokens = tail.shape[1], x.shape[1]
    if lengths is None:
        return torch.cat([tail[:, num_tokens:].to(x.dtype), x[:, max(num_tokens - past, 0) :]], dim=1)
    index = lengths[:, None] - past + torch.arange(past, device=x.device)
    index = index[..., None].expand(-1, -1, x.shape[2])
    here = x.gather(1, index.clamp(min=0))
    before = tail.to(x.dtype).gather(1, (index + past).clamp(max=max(past - 1, 0)))
    return torch.where(index >= 0, here, before)
