"""Token NLLs, KL divergences and their gradients from logits, exact to the last digits of the logits' type.

A float32 ``log_softmax`` subtracts a logit from a log-sum-exp of the same size, and its gradient subtracts 1 from a
probability. Where a token is known (1 − p = 1e-4) that leaves four digits of the NLL and two or three of the gradient.
Here nothing is subtracted that nearly cancels: with m the largest logit and rest = Σ_{v ≠ argmax} exp(z_v − m),

    −log p(y) = log1p(rest) + (m − z_y),    1 − p(argmax) = rest / (1 + rest).

Letters: N positions, V vocabulary. NLLs and divergences of half-precision logits are computed in float32, a chunk of
positions at a time, so that no second array of ``[N, V]`` is made but the gradient.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = {"cpu": 2**20}  # entries at a time: a few of these stay in a processor's cache
DEVICE_CHUNK = 2**26  # launches cost more than memory elsewhere
NEAR = 10.0  # log-ratios below which expm1 cannot overflow
SERIES = 0.05  # |x| below which eˣ − 1 − x is summed as a series


def nll_at(logits: Tensor, labels: Tensor) -> Tensor:
    """−log p(label) at every position, in nats ``[N]``, in float32 or better, of logits ``[N, V]`` and labels ``[N]``.

    Its gradient is exact in relative terms, for known tokens too. It supports reverse mode once and forward mode,
    no second derivative.
    """
    nll: Tensor = _NLL.apply(logits, labels)  # type: ignore[no-untyped-call]
    return nll


def kl_at(logits: Tensor, reference: Tensor) -> Tensor:
    """KL(p_ref ‖ p) = Σ_v p_ref(v) (log p_ref(v) − log p(v)) at every position, in nats ``[N]``, in float32 or better.

    Both logits are ``[N, V]``. Equal logits have 0 and a gradient of 0, exactly. The reference carries no gradient.
    """
    divergence: Tensor = _KL.apply(logits, reference)  # type: ignore[no-untyped-call]
    return divergence


def suppressed_ce_at(logits: Tensor, reference: Tensor, labels: Tensor, beta: float) -> Tensor:
    """−Σ_v q(v) log p(v) at every position, q = softmax(z_ref − β·1[label]), in nats ``[N]``, in float32 or better.

    Both logits are ``[N, V]``, the labels ``[N]``. The gradient is p − q; the reference carries none.
    """
    entropy: Tensor = _SuppressedCE.apply(logits, reference, labels, beta)  # type: ignore[no-untyped-call]
    return entropy


def log_probabilities(logits: Tensor) -> Tensor:
    """log p(v) of every entry of the vocabulary, in nats ``[N, V]``, in float32 or better.

    >>> log_probabilities(torch.tensor([[0.0, 0.0]])).exp().tolist()
    [[0.5, 0.5]]
    """
    wide = widen(logits)
    peak, _, _, rest = _split(wide)
    return (wide - peak[:, None]) - rest.log1p()[:, None]


def widen(tensor: Tensor) -> Tensor:
    """The tensor in float32 or better."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _split(wide: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The largest logit m ``[N]``, where it is, exp(z − m) with 0 there ``[N, V]``, and the sum of that ``[N]``."""
    peak, best = wide.max(1)
    others = (wide - peak[:, None]).exp_().scatter_(1, best[:, None], 0.0)
    return peak, best, others, others.sum(1)


def in_chunks(make: Callable[..., Tensor], out: Tensor, logits: Tensor, *others: Tensor) -> Tensor:
    """``out`` filled with a function of the logits and other tensors, some positions at a time."""
    size = max(1, CHUNK.get(logits.device.type, DEVICE_CHUNK) // max(1, logits.shape[1]))
    for chunk in (slice(start, start + size) for start in range(0, len(logits), size)):
        out[chunk] = make(logits[chunk], *(each[chunk] for each in others))
    return out


def _nll(logits: Tensor, labels: Tensor) -> Tensor:
    """−log p(y) ``[N]``."""
    wide = widen(logits)
    peak, _, _, rest = _split(wide)
    return rest.log1p_() + (peak - wide.gather(1, labels[:, None])[:, 0])


def _nll_gradient(logits: Tensor, labels: Tensor) -> Tensor:
    """∂(−log p(y))/∂z = p − 1[y] ``[N, V]``, its entry at y as minus the other probabilities' sum."""
    _, best, others, rest = _split(widen(logits))
    total = 1 + rest
    p = others.div_(total[:, None]).scatter_(1, best[:, None], total.reciprocal()[:, None])
    of_label = p.gather(1, labels[:, None])[:, 0]
    return p.scatter_(1, labels[:, None], -torch.where(best == labels, rest / total, 1 - of_label)[:, None])


class _NLL(torch.autograd.Function):
    @staticmethod
    def forward(logits: Tensor, labels: Tensor) -> Tensor:
        return in_chunks(_nll, widen(logits.new_empty(len(logits))), logits, labels)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logits, labels = ctx.saved_tensors
        return in_chunks(_scale(_nll_gradient), torch.empty_like(logits), logits, labels, grad), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        logits, labels = ctx.saved_tensors
        return in_chunks(_nll_tangent, widen(tangent.new_empty(len(tangent))), logits, labels, tangent)


class _KL(torch.autograd.Function):
    @staticmethod
    def forward(logits: Tensor, reference: Tensor) -> Tensor:
        return in_chunks(_kl, widen(logits.new_empty(len(logits))), logits, reference)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logits, reference = ctx.saved_tensors
        return in_chunks(_scale(_kl_gradient), torch.empty_like(logits), logits, reference, grad), None


class _SuppressedCE(torch.autograd.Function):
    @staticmethod
    def forward(logits: Tensor, reference: Tensor, labels: Tensor, beta: float) -> Tensor:
        return in_chunks(_suppressed_ce(beta), widen(logits.new_empty(len(logits))), logits, reference, labels)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, float], output: Tensor) -> None:
        *tensors, ctx.beta = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        logits, reference, labels = ctx.saved_tensors
        gradient = _scale(_suppressed_ce_gradient(ctx.beta))
        return in_chunks(gradient, torch.empty_like(logits), logits, reference, labels, grad), None, None, None


def _scale(gradient: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The gradient ``[N, V]`` times what comes from above ``[N]``, its last argument."""
    return lambda *tensors: gradient(*tensors[:-1]).mul_(tensors[-1][:, None])


def _nll_tangent(logits: Tensor, labels: Tensor, tangent: Tensor) -> Tensor:
    return (_nll_gradient(logits, labels) * tangent).sum(1)


def _kl(logits: Tensor, reference: Tensor) -> Tensor:
    return _kl_terms(*_log_ratio(logits, reference)).sum(1)


def _kl_gradient(logits: Tensor, reference: Tensor) -> Tensor:
    return _gain(*_log_ratio(logits, reference))


def _suppress(reference: Tensor, labels: Tensor, beta: float) -> Tensor:
    """z_ref − β·1[label] ``[N, V]``."""
    wide = widen(reference)
    return wide.scatter(1, labels[:, None], wide.gather(1, labels[:, None]) - beta)


def _suppressed_ce(beta: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def of(logits: Tensor, reference: Tensor, labels: Tensor) -> Tensor:
        target = _suppress(reference, labels, beta)
        log_q = log_probabilities(target)
        entropy = -torch.where(log_q.isneginf(), 0.0, log_q * log_q.exp()).sum(1)
        return _kl(logits, target) + entropy

    return of


def _suppressed_ce_gradient(beta: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda logits, reference, labels: _kl_gradient(logits, _suppress(reference, labels, beta))


def _log_ratio(logits: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """log p_ref and log(p/p_ref), both ``[N, V]``; the ratio's digits are those of the logits' difference."""
    wide = widen(reference)
    peak, best, _, rest = _split(wide)
    log_ref = (wide - peak[:, None]) - rest.log1p()[:, None]
    moved = (widen(logits) - wide).masked_fill(logits == reference, 0.0)  # −inf in both included
    moved = moved - moved.gather(1, best[:, None])  # a constant a position changes no probability
    near = _gain(log_ref, moved).sum(1).log1p()
    far = (log_ref + moved).logsumexp(1)
    norm = torch.where(moved.abs().amax(1) < 1, near, far)
    return log_ref, moved - norm[:, None]


def _gain(log_ref: Tensor, ratio: Tensor) -> Tensor:
    """p_ref (e^ratio − 1) ``[N, V]``: p − p_ref where ratio is log(p/p_ref)."""
    p_ref = log_ref.exp()
    return torch.where(ratio < NEAR, p_ref * ratio.expm1(), (log_ref + ratio).exp() - p_ref)


def _kl_terms(log_ref: Tensor, ratio: Tensor) -> Tensor:
    """p_ref (eˣ − 1 − x) with x = log(p/p_ref): none is negative, and they add up to the divergence."""
    p_ref = log_ref.exp()
    x = ratio
    series = x * x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6 * (1 + x / 7)))))
    terms = torch.where(x.abs() < SERIES, p_ref * series, _gain(log_ref, x) - p_ref * x)
    return torch.where(p_ref == 0, (log_ref + x).exp(), terms)
