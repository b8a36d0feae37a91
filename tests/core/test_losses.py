"""Logits to nats: against float64, over vocabularies and for tokens that are known nearly for sure."""

import math

import pytest
import torch
from torch import Tensor

from geffect.core.losses import kl_at, log_probabilities, nll_at

VOCABULARIES = [5, 49_152, 128_256]


def known(vocabulary: int, missing: float, labels: Tensor, seed: int = 0) -> Tensor:
    """Float32 logits ``[N, V]`` under which each label has 1 − p about ``missing``."""
    logits = 3 * torch.randn(len(labels), vocabulary, generator=torch.Generator().manual_seed(seed))
    rest = logits.scatter(1, labels[:, None], -torch.inf).logsumexp(1)
    return logits.scatter(1, labels[:, None], (rest + math.log((1 - missing) / missing))[:, None])


def truth(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """−log p and its gradient, in float64 from the same logits, by the other entries alone."""
    z = logits.double()
    others = (z - z.gather(1, labels[:, None])).scatter(1, labels[:, None], -torch.inf).exp()  # [N, V]
    rest = others.sum(1)
    gradient = others / (1 + rest)[:, None]
    return rest.log1p(), gradient.scatter(1, labels[:, None], -(rest / (1 + rest))[:, None])


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("missing", [0.9, 1e-1, 1e-2, 1e-4, 1e-9])
def test_a_known_tokens_nll_and_gradient_keep_their_digits(vocabulary: int, missing: float) -> None:
    labels = torch.arange(4) % vocabulary
    logits = known(vocabulary, missing, labels).requires_grad_()
    nll, gradient = truth(logits.detach(), labels)
    found = nll_at(logits, labels)
    found.sum().backward()
    assert logits.grad is not None
    assert ((found - nll).abs() / nll).max() < 3e-6
    assert ((logits.grad - gradient).norm(dim=1) / gradient.norm(dim=1)).max() < 3e-6
    assert (logits.grad.double().sum(1).abs() / gradient.norm(dim=1)).max() < 3e-6


@pytest.mark.parametrize("shift", [0.0, 60.0, -1e4])
@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_unlikely_tokens_and_huge_logits_stay_finite(scale: float, shift: float) -> None:
    logits = (scale * torch.randn(6, 50, generator=torch.Generator().manual_seed(1)) + shift).requires_grad_()
    labels = torch.arange(6)
    expected = torch.nn.functional.cross_entropy(logits.detach().double(), labels, reduction="none")
    found = nll_at(logits, labels)
    found.sum().backward()
    assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert logits.grad is not None and torch.isfinite(logits.grad).all()


def test_a_banned_token_counts_for_nothing_and_no_position_is_needed() -> None:
    logits = torch.tensor([[0.0, 1.0, -torch.inf, 2.0]], dtype=torch.float64, requires_grad=True)
    found = nll_at(logits, torch.tensor([1]))
    found.backward()
    assert found.tolist() == pytest.approx([math.log(1 + math.e + math.e**2) - 1])
    assert logits.grad is not None and float(logits.grad[0, 2]) == 0
    assert nll_at(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)).shape == (0,)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own, of forward mode
def test_derivatives_are_those_of_finite_differences() -> None:
    logits = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    reference = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    labels = torch.tensor([0, 6, 3, 3, 1])
    assert torch.autograd.gradcheck(lambda z: nll_at(z, labels), logits, check_forward_ad=True)
    assert torch.autograd.gradcheck(lambda z: kl_at(z, reference), logits)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(9, 11, generator=torch.Generator().manual_seed(4)).requires_grad_()
    labels, reference = torch.arange(9), logits.detach().roll(1, 0)

    def found() -> list[Tensor]:
        nll, kl = nll_at(logits, labels), kl_at(logits, reference)
        return [nll, kl, *torch.autograd.grad(nll.sum() + kl.sum(), logits)]

    whole = found()
    monkeypatch.setattr("geffect.core.losses.CHUNK", {"cpu": 25})
    assert all(torch.equal(a, b) for a, b in zip(found(), whole, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_read_in_float32(dtype: torch.dtype) -> None:
    labels = torch.arange(4)
    half = known(300, 1e-2, labels).to(dtype).requires_grad_()
    wide = half.detach().float().requires_grad_()
    nll_at(half, labels).sum().backward()
    nll_at(wide, labels).sum().backward()
    assert nll_at(half, labels).dtype == torch.float32
    assert half.grad is not None and wide.grad is not None
    assert torch.equal(half.grad, wide.grad.to(dtype))


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("moved", [0.0, 1e-4, 1e-2, 1.0, 50.0])
def test_a_divergence_keeps_its_digits_however_small(vocabulary: int, moved: float) -> None:
    generator = torch.Generator().manual_seed(5)
    reference = 3 * torch.randn(3, vocabulary, generator=generator)
    logits = (reference + moved * torch.randn(3, vocabulary, generator=generator)).requires_grad_()
    log_p, log_ref = logits.detach().double().log_softmax(1), reference.double().log_softmax(1)
    expected = (log_ref.exp() * (log_ref - log_p)).sum(1)
    gradient = log_p.exp() - log_ref.exp()
    found = kl_at(logits, reference)
    found.sum().backward()
    assert logits.grad is not None
    if moved == 0:
        assert not found.any() and not logits.grad.any()
        return
    assert ((found - expected).abs() / expected).max() < 1e-5
    assert ((logits.grad - gradient).norm(dim=1) / gradient.norm(dim=1)).max() < 1e-5


def test_log_probabilities_add_up_to_one() -> None:
    logits = known(49_152, 1e-4, torch.arange(4))
    found = log_probabilities(logits).double()
    assert (found.exp().sum(1) - 1).abs().max() < 1e-6
    assert torch.allclose(found, logits.double().log_softmax(1), atol=1e-5)
