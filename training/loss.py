"""Weighted cross-entropy plus soft Dice over a tensor that is only held once."""

import torch


class CrossEntropyDice(torch.autograd.Function):
    """Cross-entropy weighted per channel + 1 - mean soft Dice, of logits (V, N) and target channels (V,) int64.

    cross-entropy = sum_v w(t_v) (-log p_v(t_v)) / sum_v w(t_v);  Dice_c = 2 sum_{t_v=c} p_v(c) / (sum_v p_v(c) + |c|).
    Channels that are not in the target do not count in the mean. The gradient is written out, since over 32 channels
    autograd would keep and pass through several arrays of the size of the logits, longer than the convolutions take.
    """

    @staticmethod
    def forward(ctx, logits, target, weight):
        p = logits.float().softmax(dim=1)
        at_target = p.gather(1, target[:, None])[:, 0]
        size = torch.bincount(target, minlength=len(weight)).float()
        present = (size > 0).float() / (size > 0).sum()
        overlap = torch.zeros_like(size).index_add_(0, target, at_target)
        total = p.sum(dim=0) + size
        w = weight[target]
        w_sum = w.sum()
        loss = -(w * at_target.clamp_min(1e-30).log()).sum() / w_sum + 1 - (present * 2 * overlap / total).sum()

        # d loss / d p is a_c everywhere and b_c more at the target (Dice); softmax' and cross-entropy's part follow.
        a, b = present * 2 * overlap / total**2, -2 * present / total
        extra = at_target * b[target]
        w /= w_sum
        slope = w - p @ a - extra
        gradient = p.mul_(a + slope[:, None]).scatter_add_(1, target[:, None], (extra - w)[:, None])
        ctx.save_for_backward(gradient.to(logits.dtype))
        return loss

    @staticmethod
    def backward(ctx, upstream):
        (gradient,) = ctx.saved_tensors
        return gradient * upstream.to(gradient.dtype), None, None


def loss(logits, target, weight):
    """Of logits (B, N, X, Y, Z), target (B, X, Y, Z) int64 and a weight per channel (N,)."""
    channels = logits.shape[1]
    return CrossEntropyDice.apply(logits.movedim(1, -1).reshape(-1, channels), target.flatten(), weight)


def dice(labels, target, channels):
    """Dice per channel (N,) of two maps of channels; nan where both lack it."""
    both = torch.bincount(target.flatten()[labels.flatten() == target.flatten()], minlength=channels)
    total = sum(torch.bincount(v.flatten(), minlength=channels) for v in (labels, target))
    return (2 * both / total).cpu().numpy()
