"""Which kinds of model are measured: causal language models, and the text decoder of multimodal ones."""

import logging
from math import isfinite
from typing import Any

import torch
from torch import nn

from geffect.core.host_state import Untouched
from geffect.core.uses import LATER, short_pass
from geffect.errors import GeffectError

LOGGER = logging.getLogger(__name__)
REWARDS = (
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForRewardModel",
    "RewardModel",
    "ForQuestionAnswering",
    "ForMultipleChoice",
)
CAUSAL = "a causal language model (decoder-only, with an output head over its vocabulary)"


def check_kind(base: nn.Module) -> None:
    """Refuse what is no causal language model by its class and configuration.

    Args:
        base: the model, without wrappers.

    Raises:
        GeffectError: it is an encoder-decoder, or scores whole texts.
    """
    check_class(type(base).__name__, getattr(base, "config", None))


def check_class(name: str, config: Any) -> None:
    """Refuse a class of model that is no causal language model.

    Args:
        name: of the class.
        config: the model's configuration, if any.

    Raises:
        GeffectError: it is an encoder-decoder, or scores whole texts.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise GeffectError(
            CAUSAL, f"{name}, an encoder-decoder", "choose a decoder-only model, such as a Llama or Qwen"
        )
    if name.endswith(REWARDS):
        raise GeffectError(
            CAUSAL,
            f"{name}, which scores texts and predicts no token",
            "name the causal language model it was made from",
        )


def check_causal(base: nn.Module, answer: Any) -> None:
    """Refuse a model whose prediction at a token depends on later tokens.

    Args:
        base: the model, without wrappers.
        answer: to `geffect.core.uses.short_pass`; None, on the meta device or not finite it tells nothing.

    Raises:
        GeffectError: an earlier token's logits move with later tokens, by more than rounding.
    """
    if _differ(answer):
        raise GeffectError(
            CAUSAL,
            f"{type(base).__name__}, whose predictions depend on later tokens too",
            "set is_decoder: true in its config.json (of XLM: causal: true) if it was trained as a "
            "decoder, or choose another model",
        )


def _differ(answer: Any) -> bool:
    """Whether two texts' logits differ before their last tokens."""
    logits = getattr(answer, "logits", None)
    if logits is None or logits.device.type == "meta":
        return False
    one, other = logits[:, :-LATER].detach()
    rounding = torch.finfo(logits.dtype).eps ** 0.5 * float(one.abs().max())
    return isfinite(rounding) and not float((one - other).abs().max()) <= rounding


def check_runs(base: nn.Module) -> None:
    """Refuse a model that does not run on tokens alone, forward and backward, or is not causal.

    Args:
        base: the model, without wrappers; it is left as found.

    Raises:
        GeffectError: it fails, answers without logits, or predicts from later tokens or from padding.
    """
    beside = set(map(id, beside_text(base).values()))
    seen = [p for p in base.parameters() if p.requires_grad and id(p) not in beside and not _is_hooked(p)]
    try:
        with Untouched(base).look():
            answer = short_pass(base, graph=bool(seen))
            _B, _T, _V = answer.logits.shape
            if seen:
                torch.autograd.grad(answer.logits.float().sum(), seen[:1], allow_unused=True)
            beside_padding = short_pass(base, padded=True)
    except GeffectError:
        raise
    except Exception as error:  # any model's own
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        expected = "a model that makes logits of token ids and a mask, and gradients in evaluation mode"
        raise GeffectError(
            expected, f"{type(base).__name__}, which fails ({reason})", "choose another model"
        ) from error
    check_causal(base, answer)
    if _differ(beside_padding):
        raise GeffectError(
            CAUSAL, f"{type(base).__name__}, whose predictions depend on padding on the right", "choose another model"
        )


def _is_hooked(parameter: nn.Parameter) -> bool:
    # a host's own hooks, and those that gather shards, are none of a check's business
    return bool(parameter._backward_hooks) or hasattr(parameter, "device_mesh")


def text_decoder(base: nn.Module) -> nn.Module | None:
    """The text decoder inside a multimodal model; None of a model of text alone."""
    config: Any = getattr(base, "config", None)
    if not hasattr(config, "get_text_config") or not hasattr(base, "get_decoder"):
        return None
    decoder = base.get_decoder() if config.get_text_config(decoder=True) is not config else base  # type: ignore[operator]
    return decoder if isinstance(decoder, nn.Module) and decoder is not base else None


def beside_text(base: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a multimodal model that are neither of its text decoder nor of the decoder's ends.

    Args:
        base: the model, without wrappers.

    Returns:
        Name → parameter; none of a model of text alone.
    """
    decoder = text_decoder(base)
    if decoder is None:
        return {}
    ends = (base.get_input_embeddings(), base.get_output_embeddings())  # type: ignore[operator]
    text = {id(p) for part in (decoder, *ends) if part is not None for p in part.parameters()}
    return {name: parameter for name, parameter in base.named_parameters() if id(parameter) not in text}


def freeze_beside_text(base: nn.Module) -> None:
    """Freeze what stands beside a multimodal model's text decoder, and say so in one line."""
    rest = beside_text(base)
    for parameter in rest.values():
        parameter.requires_grad_(False)
    if rest:
        tell(base, rest, "frozen")


def tell(base: nn.Module, rest: dict[str, nn.Parameter], fate: str) -> None:
    """Log one line about the parameters beside the text decoder.

    Args:
        base: the model.
        rest: as of `beside_text`.
        fate: what becomes of them.
    """
    parts = sorted({".".join(name.split(".")[:2]) for name in rest})
    size = sum(parameter.numel() for parameter in rest.values())
    LOGGER.warning(
        "%s: its text decoder is measured; the other %d parameters (%s) are %s",
        type(base).__name__,
        size,
        ", ".join(parts),
        fate,
    )
