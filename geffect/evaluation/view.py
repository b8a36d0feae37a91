"""A set under a model: token scores and texts, each computed once, when a metric first asks for it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from geffect.core.forward import IGNORE_INDEX
from geffect.data.encode import EncodedExample, pad_id_of
from geffect.data.load import ExampleSet, QASet
from geffect.errors import GeffectError
from geffect.evaluation.metrics.generation import generate, prompt_of
from geffect.evaluation.metrics.tokenwise import TokenScores, token_scores


class View:
    """What metrics see of a set.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        rows: the set.
        encode: a set as the model sees it, one encoding an example (`encode_examples`).
        batch_size: rows at a time; it does not change a result.
        max_new_tokens: of an answer the model writes itself.
        shots: rows shown before a question, to `knowmem` alone.

    Attributes:
        rows: the set.
        encoded: its rows as the model sees them, one each.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        rows: ExampleSet,
        encode: Callable[[ExampleSet], list[EncodedExample]],
        batch_size: int = 16,
        max_new_tokens: int = 200,
        shots: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.model, self.tokenizer, self.rows = model, tokenizer, rows
        self.batch_size, self.max_new_tokens, self.shots = batch_size, max_new_tokens, shots
        self._encode, self.encoded = encode, encode(rows)
        self._scores: dict[str, list[list[TokenScores]]] = {}
        self._said: list[str] | None = None

    def scores(self) -> list[TokenScores]:
        """Of every row's labeled tokens, as the set has them."""
        if "" not in self._scores:
            self._scores[""] = [[each] for each in self._scored(self.encoded)]
        return [each for [each] in self._scores[""]]

    def variants(self, *fields: str) -> list[list[TokenScores]]:
        """Of every row's answers in another column.

        Args:
            *fields: columns; the first that the set has is taken. Each holds a text or a list of texts.

        Returns:
            A list a row, one element a text.
        """
        field = next(each for each in fields if all(each in row for row in self.rows.rows))
        if field not in self._scores:
            self._scores[field] = self._of_column(field)
        return self._scores[field]

    def said(self) -> list[str]:
        """What the model answers to every question, greedily.

        Returns:
            A text a row.

        Raises:
            GeffectError: the set is of texts.
        """
        self.questions()
        if self._said is None:
            prompts = [prompt_of(row) for row in self.encoded]
            found = generate(self.model, self.tokenizer, prompts, self.max_new_tokens, self.batch_size)
            self._said = [self.text(ids) for ids in found]
        return self._said

    @property
    def wrote(self) -> bool:
        """Whether the model was asked to write answers."""
        return self._said is not None

    def questions(self) -> QASet:
        """The set, which has questions.

        Returns:
            The set.

        Raises:
            GeffectError: it is of texts.
        """
        if not isinstance(self.rows, QASet):
            raise GeffectError(f"questions and answers in {self.rows.name}", "texts", "name a set of questions")
        return self.rows

    def targets(self) -> list[str]:
        """The text of every row's labeled tokens."""
        return [self._decoded([label for label in row.labels if label != IGNORE_INDEX]) for row in self.encoded]

    def text(self, ids: Sequence[int]) -> str:
        """Tokens as text, without special ones and outer spaces."""
        return self._decoded(ids).strip()

    def _decoded(self, ids: Sequence[int]) -> str:
        found: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return found

    def _scored(self, rows: Sequence[EncodedExample]) -> list[TokenScores]:
        return token_scores(self.model, rows, pad_id_of(self.tokenizer), self.batch_size)

    def _of_column(self, field: str) -> list[list[TokenScores]]:
        texts = [[row[field]] if isinstance(row[field], str) else row[field] for row in self.rows.rows]
        flat = tuple(row | {"answer": text} for row, each in zip(self.rows.rows, texts, strict=True) for text in each)
        scored = iter(self._scored(self._encode(replace(self.rows, rows=flat))))
        return [[next(scored) for _ in each] for each in texts]
