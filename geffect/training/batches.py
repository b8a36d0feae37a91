"""Batches: which examples meet in a step, and what an objective needs beside their own tokens, computed once.

Which examples a step has is a function of (seed, epoch, position), never of a global random state.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler

from geffect.config import UnlearnConfig
from geffect.core.architectures import CausalLM, Tokenizer
from geffect.core.forward import ALL_LOGITS, IGNORE_INDEX, Outputs
from geffect.core.splits import domain_of, domains, of_role, role_of, split_name, split_names
from geffect.data.encode import EncodedExample, collate, pad_id_of
from geffect.data.load import QASet
from geffect.data.relabel import BUILT_IN, random_labels, replace_answers, skip_labels
from geffect.errors import GeffectError
from geffect.io.system import check_memory, rank_and_size
from geffect.models.scoring import compute_reference_nll, forward_batches
from geffect.objectives.base import Objective
from geffect.training.setup import TrainingSetup, encode

LOGGER = logging.getLogger(__name__)
Step = dict[str, EncodedExample]
EXAMPLE_BYTES, TOKEN_BYTES = 300, 16  # of an encoding in memory
STREAMS = {"retain": 1, "general": 3}  # 2 draws refusals, 4 random labels


def permutation(num_examples: int, seed: int, epoch: int, place: int = 0, lap: int = 0) -> list[int]:
    """The order of the forget examples in an epoch; every domain (``place``) and every further lap has its own."""
    further = [lap, 0, place] if place or lap else []
    return [int(i) for i in np.random.default_rng([seed, epoch, *further]).permutation(num_examples)]


def draw_partner(num_examples: int, seed: int, epoch: int, index: int, stream: int = 1, place: int = 0) -> int:
    """The example of another set drawn, uniformly, for a forget example; each set draws from its own stream."""
    further = [place] if place else []
    return int(np.random.default_rng([seed, epoch, index, stream, *further]).integers(num_examples))


class PairedDataset(Dataset[Step]):
    """Examples of several sets that meet in a step, indexed by one position a set."""

    def __init__(self, sets: Mapping[str, Sequence[EncodedExample]]) -> None:
        self.sets = dict(sets)

    def __len__(self) -> int:
        return max(map(len, of_role(self.sets, "forget")))

    def __getitem__(self, positions: tuple[int, ...]) -> Step:
        """Set → its example."""
        return {name: examples[i] for (name, examples), i in zip(self.sets.items(), positions, strict=True)}


class PairedSampler(Sampler[tuple[int, ...]]):
    """An epoch of forget examples, each with an example of every other set; ``set_epoch`` chooses which.

    With forget example i come a retain and a general example, drawn uniformly, and the alternative of example i: where
    there are more alternatives than forget examples, every epoch has its own. With several domains, each step has one
    forget example and one retain example of each; a domain with fewer forget examples repeats them. ``sizes`` maps each
    set, ``forget`` or ``forget/DOMAIN`` among them, to its number of examples.
    """

    def __init__(self, sizes: Mapping[str, int], seed: int) -> None:
        self.sizes, self.seed, self.epoch = dict(sizes), seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        return max(of_role(self.sizes, "forget"))

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        orders = [self._order(place, self.sizes[name]) for place, name in enumerate(split_names("forget", self.sizes))]
        for indices in zip(*orders, strict=True):
            forget = dict(zip(domains(self.sizes), indices, strict=True))
            yield tuple(self._position(name, size, forget) for name, size in self.sizes.items())

    def _order(self, place: int, size: int) -> list[int]:
        """The forget examples of the domain at ``place``, repeated up to the length of the largest."""
        laps = range(-(-len(self) // size))
        indices = [index for lap in laps for index in permutation(size, self.seed, self.epoch, place, lap)]
        return indices[: len(self)]

    def _position(self, name: str, size: int, forget: Mapping[str, int]) -> int:
        """Which example of a set goes beside the forget example of each domain."""
        role, domain = role_of(name), domain_of(name)
        place = list(forget).index(domain) if domain in forget else 0
        index = list(forget.values())[place]
        if role == "forget":
            return index
        if role == "alternative":
            return (self.epoch * self.sizes[split_name("forget", domain)] + index) % size
        return draw_partner(size, self.seed, self.epoch, index, STREAMS[role], place)


class ShuffledSampler(Sampler[int]):
    """An epoch's order, a function of seed and epoch alone."""

    def __init__(self, num_examples: int, seed: int) -> None:
        self.num_examples, self.seed, self.epoch = num_examples, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_examples

    def __iter__(self) -> Iterator[int]:
        yield from permutation(self.num_examples, self.seed, self.epoch)


Columns = dict[str, dict[str, list[Tensor]]]  # set → column → one tensor ``[T]`` an example


def compute_columns(
    model: CausalLM,
    tokenizer: Tokenizer,
    objective: Objective,
    sets: Mapping[str, Sequence[EncodedExample]],
    seed: int,
    *,
    autocast: bool = False,
) -> Columns:
    """Reference NLLs and other labels of the examples that an objective needs them for.

    ``model`` is the start of the run, as it is now; with ``autocast`` it computes in bfloat16, as the run will.
    """
    needs, pad_id = objective.needs, pad_id_of(tokenizer)
    columns: Columns = {name: {} for name in split_names("forget", sets)}
    with torch.autocast(model.device.type, torch.bfloat16) if autocast else contextlib.nullcontext():
        if "ref_nll" in needs:
            roles = {"forget"} | ({"alternative"} if "alternative" in needs else set())
            for name in (name for name in sets if role_of(name) in roles):
                columns[name] = {"ref_nll": compute_reference_nll(model, sets[name], pad_id)}
        for name in split_names("forget", sets):
            for need in sorted(needs):
                columns[name] |= _labels(model, tokenizer, need, sets[name], seed)
    return columns


def _labels(
    model: CausalLM, tokenizer: Tokenizer, need: str, examples: Sequence[EncodedExample], seed: int
) -> dict[str, list[Tensor]]:
    """The other labels that one need stands for, if any."""
    kind, _, variant = need.removesuffix("_labels").partition("_")
    if kind == "adversarial":
        return {need: adversarial_labels(model, examples, pad_id_of(tokenizer), misaligned=variant == "knowundo")}
    if kind == "skipped":
        return {need: skip_labels(examples, int(variant))}
    if kind == "random":
        vocabulary, special = int(model.config.get_text_config().vocab_size), tokenizer.all_special_ids
        return {need: random_labels(examples, vocabulary, special, seed, everywhere=variant == "knowundo")}
    return {}


def check_columns(sets: Mapping[str, Sequence[EncodedExample]], columns: Columns) -> None:
    """Refuse a column, by name, of other examples than its set's, or of another tokenizer's tokens."""
    for name, by_column in columns.items():
        lengths = [len(example.input_ids) for example in sets[name]]
        for column, tensors in by_column.items():
            sizes = [len(tensor) for tensor in tensors]
            if sizes != lengths:
                i = next((i for i, pair in enumerate(zip(sizes, lengths, strict=False)) if pair[0] != pair[1]), None)
                other = f"{len(sizes)} tensors" if i is None else f"{sizes[i]} tokens in example {i}, not {lengths[i]}"
                message = f"{column} of the {name} set has {other}; the set has {len(lengths)} examples"
                raise GeffectError(message, remedy="Compute it with the run's start and tokenizer")


def check_starts_at_one(outputs: Outputs, atol: float) -> None:
    """Refuse another model's reference: every token's weight 2p/(p + p₀) is 1 within ``atol`` where θ = θ₀."""
    weight = 2 * torch.sigmoid(outputs.ref - outputs.nll)[outputs.mask]
    if not torch.allclose(weight, torch.ones_like(weight), atol=atol):
        raise GeffectError(
            f"The reference is not the run's start: weights go from {weight.min():.3g} to {weight.max():.3g}, not 1",
            remedy="Compute the reference with the model as it is now",
        )


def collate_sets(
    examples: Mapping[str, Sequence[EncodedExample]], columns: Columns, pad_id: int
) -> dict[str, dict[str, Tensor]]:
    """Set → batch of some of its examples, padded to that set's own length, with their part of every column.

    NLLs are padded with 0, labels with ``IGNORE_INDEX``.
    """
    batches = {name: collate(each, pad_id) for name, each in examples.items()}
    for name, batch in batches.items():
        indices, width = batch["index"].tolist(), batch["labels"].shape[1]
        for column, tensors in columns.get(name, {}).items():
            fill = IGNORE_INDEX if column.endswith("_labels") else 0
            batch[column] = torch.full((len(indices), width), fill, dtype=tensors[indices[0]].dtype)
            for i, index in enumerate(indices):
                batch[column][i, : len(tensors[index])] = tensors[index]
    return batches


def adversarial_labels(
    model: nn.Module, examples: Sequence[EncodedExample], pad_id: int, *, misaligned: bool = False, batch_size: int = 16
) -> list[Tensor]:
    """The model's best token but the true one, as labels.

    Aligned: the label of a loss-carrying token t is argmax of the prediction of t, with token t itself banned.
    Misaligned (arXiv 2407.01920's code): the label of every position j is argmax of the prediction of token j + 1, with
    token j and the vocabulary's last banned, although a label at j is scored by the prediction of j.
    They are ``[T]`` an example, ``IGNORE_INDEX`` where no loss is carried.
    """
    labels: dict[int, Tensor] = {}
    needs = {ALL_LOGITS} if misaligned else ()
    best, label = (_best_but_last, _misaligned) if misaligned else (_best, _aligned)
    for indices, outputs in forward_batches(model, examples, pad_id, batch_size, needs):
        ids = collate([examples[i] for i in indices], pad_id)["input_ids"]  # [B, T]
        banned = (ids if misaligned else ids.roll(-1, 1)).flatten().to(outputs.index.device)[outputs.index]
        tokens = outputs.by_example(outputs.map_logits(best, banned).cpu())
        labels |= {i: label(each, examples[i]) for i, each in zip(indices, tokens, strict=True)}
    return [labels[i] for i in range(len(examples))]


def _best(logits: Tensor, banned: Tensor) -> Tensor:
    """The most likely token ``[n]`` but a banned one at each position."""
    return logits.scatter(1, banned[:, None], -torch.inf).argmax(-1)


def _best_but_last(logits: Tensor, banned: Tensor) -> Tensor:
    """The same, with the vocabulary's last token banned everywhere."""
    last = torch.full_like(banned, logits.shape[1] - 1)
    return logits.scatter(1, torch.stack([banned, last], 1), -torch.inf).argmax(-1)


def _aligned(tokens: Tensor, example: EncodedExample) -> Tensor:
    """Of the tokens ``[n]`` at the positions that predict the n labeled ones."""
    labels = torch.tensor(example.labels)
    labels[1:][labels[1:] != IGNORE_INDEX] = tokens  # nothing predicts the first token
    return labels


def _misaligned(tokens: Tensor, example: EncodedExample) -> Tensor:
    """Of the tokens at every position, padding included."""
    return tokens[: len(example.input_ids)].clone()


def alternatives(setup: TrainingSetup[UnlearnConfig], forget: str, size: int) -> list[EncodedExample]:
    """The first ``size`` questions of a forget split with refusals, one epoch of the run after another."""
    config, questions = setup.config, setup.sets[forget]
    if not isinstance(questions, QASet):
        message = f"{questions.name} has texts, and {config.objective.text!r} needs questions to refuse"
        raise GeffectError(message, remedy="Name a set of questions, or another objective")
    questions = replace(questions, examples=questions.examples[:size])
    batches = config.steps * config.grad_accum_steps * rank_and_size()[1]
    epochs = -(-batches // -(-len(questions) // config.batch_size))
    encoded: list[EncodedExample] = []
    for epoch in range(epochs):
        refusals = replace_answers(questions, epoch, config.seed, setup.answers or BUILT_IN)
        examples = encode(config, setup.loaded, refusals)
        if not encoded:
            needed = epochs * sum(EXAMPLE_BYTES + TOKEN_BYTES * len(each.input_ids) for each in examples)
            check_memory(f"{epochs} epochs of refusals", needed, "Lower --steps")
        encoded += [replace(each, index=i, cut=0) for i, each in enumerate(examples, len(encoded))]
    return encoded


def training_sets(setup: TrainingSetup[UnlearnConfig]) -> dict[str, list[EncodedExample]]:
    """The sets whose examples meet in a step, with refusals where the objective needs alternative answers."""
    sizes, roles, encoded = setup.sizes, setup.config.objective.sets, setup.encoded
    sets = {name: encoded[name][:size] for name, size in sizes.items()}
    if setup.config.domain and len({*sizes.values(), *(len(encoded[name]) for name in sizes)}) > 1:
        used = ", ".join(f"{name} {size} of {len(encoded[name])}" for name, size in sizes.items())
        LOGGER.warning("sizes differ; examples used: %s; an epoch is as long as the largest forget set", used)
    if "general" in roles:
        sets["general"] = encoded["general"]
    if "alternative" in roles:
        for name in split_names("forget", sizes):
            sets[split_name("alternative", domain_of(name))] = alternatives(setup, name, sizes[name])
    return sets
