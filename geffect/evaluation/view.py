"""A set under a model: what metrics compute their numbers from."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import takewhile
from types import MappingProxyType
from typing import Any, Self

import torch
from torch import Tensor, nn

from geffect.core.architectures import Tokenizer
from geffect.core.devices import input_device
from geffect.core.forward import IGNORE_INDEX, shift_labels
from geffect.core.losses import in_chunks, log_probabilities, nll_at, widen
from geffect.data.encode import EncodedExample, pad_id_of, turn_end
from geffect.data.load import ExampleSet, QASet
from geffect.errors import GeffectError
from geffect.models.scoring import batches_by_length, forward_batches, in_evaluation_mode
from geffect.training.memory import key_width

SCORED = 16  # examples scored at a time by default
MOST = 128  # prompts continued at a time by default
CACHE = 2**30  # bytes of keys and values of a batch of prompts and their continuations


@dataclass(frozen=True)
class TokenScores:
    """Scores of an example's n labeled tokens, in order, on the CPU in float64."""

    log_p: Tensor  # [n], log p of each, in nats
    right: Tensor  # [n], bool: whether it is the most likely one
    mean: Tensor  # [n], μ = Σ_v p(v) log p(v) over the vocabulary at its position
    std: Tensor  # [n], σ with σ² = Σ_v p(v) (log p(v))² − μ²

    @classmethod
    def of(cls, columns: Tensor) -> Self:
        """The scores in the columns of a tensor ``[n, 4]``, in this order."""
        log_p, right, mean, std = columns.double().unbind(1)
        return cls(log_p, right.bool(), mean, std)

    @property
    def nll(self) -> float:
        """Mean −log p over the n tokens; NaN where there are none."""
        return -self.log_p.mean().item()


def token_scores(
    model: nn.Module, examples: Sequence[EncodedExample], pad_id: int, batch_size: int = SCORED
) -> list[TokenScores]:
    """Score every labeled token of a set; the model stays in its mode."""
    scores: dict[int, TokenScores] = {}
    for places, outputs in forward_batches(model, examples, pad_id, batch_size):
        labels = shift_labels(outputs.labels).flatten()[outputs.index]
        numbers = outputs.map_logits(_statistics, labels).cpu()
        scores |= dict(zip(places, map(TokenScores.of, outputs.by_example(numbers)), strict=True))
    return [scores[i] for i in range(len(examples))]


def _statistics(logits: Tensor, labels: Tensor) -> Tensor:
    """``[n, 4]`` what `TokenScores` holds, some positions at a time."""
    return in_chunks(_columns, widen(logits.new_empty(len(logits), 4)), logits, labels)


def _columns(logits: Tensor, labels: Tensor) -> Tensor:
    log_ps = log_probabilities(logits)  # [n, V]
    p = log_ps.exp()
    mean = (p * log_ps).nan_to_num().sum(-1)  # 0 · log 0 is 0
    second = (p * log_ps.square()).nan_to_num().sum(-1)
    std = (second - mean.square()).clamp_min(0).sqrt()
    right = (logits.argmax(-1) == labels).to(mean)
    return torch.stack([-nll_at(logits, labels), right, mean, std], 1)


def prompt_of(example: EncodedExample) -> list[int]:
    """The tokens of an example before its first labeled one."""
    start = next((i for i, label in enumerate(example.labels) if label != IGNORE_INDEX), len(example.input_ids))
    return example.input_ids[:start]


def end_ids(model: nn.Module, tokenizer: Tokenizer) -> set[int]:
    """Every token that ends an answer, by the tokenizer, its template and the model's configurations."""
    config: Any = getattr(model, "config", None)
    decoder = config.get_text_config() if hasattr(config, "get_text_config") else None
    places = (tokenizer, getattr(model, "generation_config", None), config, decoder)
    ends = [turn_end(tokenizer), *(getattr(place, "eos_token_id", None) for place in places)]
    return {int(i) for each in ends if each is not None for i in torch.as_tensor(each).flatten().tolist()}


def generate(
    model: nn.Module,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int = 200,
    batch_size: int = 0,
) -> list[list[int]]:
    """Continue prompts greedily: the new tokens of each, in the prompts' order, without the end (`end_ids`).

    Batches are padded on the left and masked there, so that a prompt's continuation does not depend on the others'.
    A batch has at most ``batch_size`` prompts (0: `MOST`), and keys and values of about `CACHE` bytes at most.
    Each token is the most likely one: penalties, forced or banned tokens and least lengths in the model's generation
    settings do not apply. The model stays in its mode.
    """
    from transformers import GenerationConfig

    ends, pad = end_ids(model, tokenizer), pad_id_of(tokenizer)
    greedy = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=pad, eos_token_id=sorted(ends) or None
    )
    device, continued = input_device(model), dict[int, list[int]]()
    lengths, room = [len(prompt) for prompt in prompts], cache_tokens(model)
    batches = batches_by_length(lengths, batch_size or MOST, room, max_new_tokens)
    with in_evaluation_mode(model), _default_generation_settings(model), torch.no_grad():
        for batch in batches:
            width = max(len(prompts[i]) for i in batch)
            ids = torch.tensor([[pad] * (width - len(prompts[i])) + list(prompts[i]) for i in batch], device=device)
            mask = torch.tensor([[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in batch], device=device)
            ids_out = model.generate(inputs=ids, attention_mask=mask, generation_config=greedy)  # type: ignore[operator]
            for i, tokens in zip(batch, ids_out[:, width:].tolist(), strict=True):
                continued[i] = list(takewhile(lambda token: token not in ends, tokens))
    return [continued[i] for i in range(len(prompts))]


def cache_tokens(model: nn.Module) -> int:
    """How many tokens' keys and values `CACHE` holds, by the shape in the model's configuration."""
    config: Any = getattr(model, "config", None)
    shape = config.get_text_config() if hasattr(config, "get_text_config") else config
    blocks = getattr(shape, "num_hidden_layers", 0) or 1
    return CACHE // (2 * blocks * key_width(shape) * next(model.parameters()).element_size())


@contextmanager
def _default_generation_settings(model: nn.Module) -> Iterator[None]:
    """Set the model's generation settings aside: ``generate`` reads from them what its arguments leave unset."""
    from transformers import GenerationConfig

    settings_of = [
        (module, vars(module)["generation_config"]) for module in model.modules() if "generation_config" in vars(module)
    ]
    for module, _ in settings_of:
        module.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for module, settings in settings_of:
            module.generation_config = settings


class View:
    """A set under a model, as metrics see it: token scores and texts, each computed when first asked for.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        examples: the set.
        encode: a set as the model sees it, one encoding an example (`encode_examples`).
        batch_size: examples at a time, which does not change a result; 0: 16 to score, and to continue as `generate`.
        max_new_tokens: of an answer the model writes itself.
        shots: examples shown before a question, to `knowmem` alone.
        beside: further models by name, for `uds` alone: ``start`` and ``retrained``.

    Attributes:
        examples: the set.
        encoded: its examples as the model sees them, one each.
        memo: what several metrics share, by name.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        examples: ExampleSet,
        encode: Callable[[ExampleSet], list[EncodedExample]],
        batch_size: int = 0,
        max_new_tokens: int = 200,
        shots: Sequence[Mapping[str, str]] = (),
        beside: Mapping[str, nn.Module] = MappingProxyType({}),
    ) -> None:
        self.model, self.tokenizer, self.examples = model, tokenizer, examples
        self.batch_size, self.max_new_tokens, self.shots, self.beside = batch_size, max_new_tokens, shots, beside
        self.memo: dict[str, Any] = {}
        self._encode, self.encoded = encode, encode(examples)
        self._scores: list[TokenScores] | None = None
        self._column_scores: dict[str, list[list[TokenScores]]] = {}
        self._answers: list[str] | None = None

    def of(self, examples: ExampleSet) -> "View":
        """Another set under the same model."""
        options = (self.batch_size, self.max_new_tokens, self.shots, self.beside)
        return View(self.model, self.tokenizer, examples, self._encode, *options)

    def score(self, encoded: Sequence[EncodedExample]) -> list[TokenScores]:
        """Scores of the labeled tokens of any examples under the model."""
        return token_scores(self.model, encoded, pad_id_of(self.tokenizer), self.batch_size or SCORED)

    def scores(self) -> list[TokenScores]:
        """Scores of every example's labeled tokens."""
        if self._scores is None:
            self._scores = self.score(self.encoded)
        return self._scores

    def column_scores(self, *columns: str) -> list[list[TokenScores]]:
        """Scores of the texts in another answer column: a list an example, one element a text.

        The first column that the set has is taken. Each holds a text or a list of texts.
        """
        column = next(name for name in columns if all(name in example for example in self.examples))
        if column not in self._column_scores:
            examples = self.examples.examples
            texts = [[each[column]] if isinstance(each[column], str) else each[column] for each in examples]
            flat = [each | {"answer": text} for each, several in zip(examples, texts, strict=True) for text in several]
            scores = iter(self.score(self._encode(replace(self.examples, examples=tuple(flat)))))
            self._column_scores[column] = [[next(scores) for _ in several] for several in texts]
        return self._column_scores[column]

    def answers(self) -> list[str]:
        """What the model answers to every question, greedily: a text an example."""
        self.questions()
        if self._answers is None:
            prompts = [prompt_of(example) for example in self.encoded]
            ids = generate(self.model, self.tokenizer, prompts, self.max_new_tokens, self.batch_size)
            self._answers = [self.text(each) for each in ids]
        return self._answers

    @property
    def has_answers(self) -> bool:
        """Whether the model was asked to write answers."""
        return self._answers is not None

    def questions(self) -> QASet:
        """The set; raise where it has texts."""
        if not isinstance(self.examples, QASet):
            message = f"{self.examples.name} has texts, not questions and answers"
            raise GeffectError(message, remedy="Name a set of questions")
        return self.examples

    def targets(self) -> list[str]:
        """The text of every example's labeled tokens."""
        return [self._decode([label for label in each.labels if label != IGNORE_INDEX]) for each in self.encoded]

    def text(self, ids: Sequence[int]) -> str:
        """Tokens as text, without special ones and outer spaces."""
        return self._decode(ids).strip()

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text
