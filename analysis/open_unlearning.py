"""Hold every objective and metric against open-unlearning's own code, on one model and one batch, in float64.

    git clone https://github.com/locuslab/open-unlearning && python -m analysis.open_unlearning --code open-unlearning

Their `compute_loss` and metric functions run as they are, on the token ids and labels that this toolkit makes; what
they import and these do not need (deepspeed, omegaconf, their data loaders) is replaced. Each trainer's arguments are
turned into an objective by what `geffect import-config` uses. Where a loss or gradient differs, the difference that is
named as the reason is written into our formula, and both are compared again. The numbers go to
``figures/open_unlearning/`` and the page to ``docs/results/open_unlearning.md``.
"""

import argparse
import copy
import datetime
import importlib
import json
import platform
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

import geffect
from geffect.config.imported import objective_text
from geffect.core.forward import IGNORE_INDEX, forward
from geffect.data.encode import collate, encode_set, pad_id_of
from geffect.data.load import QASet, make_set
from geffect.data.relabel import REFUSALS
from geffect.evaluation import scores
from geffect.evaluation.metrics import METRICS
from geffect.evaluation.view import View, prompt_of
from geffect.objectives.base import Counts
from geffect.objectives.registry import make_objective

Batch = dict[str, Tensor]
EQUAL = 1e-6  # relative: below, two numbers agree
EXAMPLES, SCORED, WRITTEN = 4, 20, 40  # of a batch, of a scored set; tokens of an answer
NOISE = 0.9  # of the model, of each tensor's standard deviation; without it every reference term is at its start
K, P = 0.4, 2  # their Min-K share and gradient norm
LAYER = {"module_regex": r"model\.layers\.1", "retain_loss_type": "EMBED_DIFF"}


@dataclass(frozen=True)
class Trainer:
    """A trainer of open-unlearning, with its published arguments.

    Attributes:
        module: of their ``trainer.unlearn``; none: the plain loss of the alternative answers.
        handler: the class.
        arguments: of the class, also those that it does not have as attributes.
        quirk: the loss as their code has it where ours is another one; None where both are one.
        reason: why they differ.
    """

    module: str
    handler: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    quirk: "Callable[[World, Trainer], Tensor] | None" = None
    reason: str = ""
    answers: str = "refusals"


@dataclass(frozen=True)
class World:
    """A model, the reference it was made of, and batches by name."""

    model: Any
    reference: Any
    tokenizer: Any
    batches: Mapping[str, Batch]

    def logits(self, name: str) -> Tensor:
        """``[B, T, V]`` of one batch."""
        logits: Tensor = self.model(**_inputs(self.batches[name])).logits
        return logits

    def retain_nll(self) -> Tensor:
        """The mean NLL of the retain batch, by transformers."""
        loss: Tensor = self.model(**_inputs(self.batches["retain"])).loss
        return loss


def undial(world: World, trainer: Trainer) -> Tensor:
    """UNDIAL averaged over every position: prompts and padding too, where entry V − 100 is suppressed."""
    labels = world.batches["forget"]["labels"][:, 1:]
    with torch.no_grad():
        targets = world.reference(**_inputs(world.batches["forget"])).logits[:, :-1].clone()
    places = labels.remainder(targets.shape[-1])  # an index of −100 counts from the end
    targets -= trainer.arguments["beta"] * functional.one_hot(places, targets.shape[-1])
    log_p = world.logits("forget")[:, :-1].log_softmax(-1)
    loss: Tensor = -(targets.softmax(-1) * log_p).sum(-1).mean()
    return loss


def pdu(world: World, trainer: Trainer) -> Tensor:
    """PDU's forget loss at the positions of the labeled tokens themselves, not at those that predict them."""
    logits, labels = world.logits("forget"), world.batches["forget"]["labels"]
    peaks = (logits.amax(-1) - logits.mean(-1)).square()
    loss: Tensor = peaks[labels != IGNORE_INDEX].mean() + trainer.arguments["alpha"] * world.retain_nll()
    return loss


def rmu(world: World, trainer: Trainer) -> Tensor:
    """RMU at the labeled tokens themselves, the sum of each example divided by the count of every one; their mean."""
    losses = []
    for name, target in (("forget", control(world, trainer)), ("retain", None)):
        batch = world.batches[name]
        mask = (batch["labels"] != IGNORE_INDEX).double()
        found, other = (_hidden(model, batch) for model in (world.model, world.reference))
        squares = (found - (other.detach() if target is None else target)).square().mean(-1)
        losses.append(((squares * mask).sum(1) / mask.sum(1, keepdim=True)).mean())  # [B] / [B, 1]
    return losses[0] + losses[1]


def ceu(world: World, trainer: Trainer) -> Tensor:
    """CE-U as the cross-entropy to the model's own probabilities without the label, which have no graph."""
    labels = world.batches["forget"]["labels"]
    kept = ((labels != IGNORE_INDEX).cumsum(1) > 1) & (labels != IGNORE_INDEX)
    logits = world.logits("forget")[:, :-1][kept[:, 1:]]
    suppressed = logits.detach().scatter(1, labels[kept][:, None], -torch.inf)
    return -(suppressed.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean()


def control(world: World, trainer: Trainer) -> Tensor:
    """The vector to which RMU steers; theirs is drawn by another generator."""
    [(_, term), *_] = make_objective(objective_text(trainer.handler, trainer.arguments)).terms
    direction: Tensor = term.c * term.direction(world.model.config.hidden_size)  # type: ignore[attr-defined]
    return direction[None, None].to(next(world.model.parameters()))


def _hidden(model: nn.Module, batch: Batch) -> Tensor:
    hidden: Tensor = model(**_inputs(batch), output_hidden_states=True).hidden_states[2]
    return hidden


NLL = "their mean NLL is transformers' own loss, which it computes in float32"
MASKED = "their mask is not shifted: it has the labeled tokens' own positions, ours those that predict them"
TRAINERS = {
    "GradAscent": Trainer("grad_ascent", "GradAscent"),
    "GradDiff": Trainer("grad_diff", "GradDiff", {"gamma": 1.0, "alpha": 1.0}),
    "GradDiff, KL": Trainer("grad_diff", "GradDiff", {"gamma": 1.0, "alpha": 1.0, "retain_loss_type": "KL"}),
    "NPO": Trainer("npo", "NPO", {"beta": 0.1, "gamma": 1.0, "alpha": 1.0}),
    "SimNPO": Trainer("simnpo", "SimNPO", {"beta": 4.5, "delta": 0.0, "gamma": 0.125, "alpha": 1.0}),
    "DPO (IdkDPO)": Trainer("dpo", "DPO", {"beta": 0.1, "gamma": 1.0, "alpha": 1.0}),
    "DPO (AltPO)": Trainer("dpo", "DPO", {"beta": 0.1, "gamma": 1.0, "alpha": 1.0}, answers="others"),
    "FinetuneTrainer (IdkNLL)": Trainer("", "IdkNLL"),
    "WGA": Trainer("wga", "WGA", {"beta": 1.0, "gamma": 1.0, "alpha": 1.0}),
    "SatImp": Trainer("satimp", "SatImp", {"beta1": 5.0, "beta2": 1.0, "gamma": 0.1, "alpha": 1.0}),
    "RMU": Trainer(
        "rmu", "RMU", {"steering_coeff": 2.0, "gamma": 1.0, "alpha": 1.0, **LAYER}, rmu,
        f"{MASKED}; and they divide sums [B] by counts [B, 1], each sum by every count, ours all by the labeled tokens",
    ),
    "UNDIAL": Trainer(
        "undial", "UNDIAL", {"beta": 10.0, "gamma": 1.0, "alpha": 0.0}, undial,
        "they average over all positions, prompts and padding too, where entry V − 100 of the vocabulary is suppressed",
    ),
    "CEU": Trainer(
        "ceu", "CEU", {"ignore_first_n_answer_tokens": 1}, ceu,
        "theirs is the cross-entropy to the model's own probabilities without the label, ours mean w log p, another "
        "number with the same gradient",
    ),
    "PDU": Trainer(
        "pdu", "PDU", {"retain_loss_eps": 0.0, "dual_step_size": 5.0, "gamma": 1.0, "alpha": 100.0}, pdu, MASKED
    ),
}  # fmt: skip


def imported(code: Path) -> Callable[[str], ModuleType]:
    """A function that imports a module of their ``src`` by its dotted name, without what its packages import."""
    for name in ("trainer", "evals", "data"):
        package = ModuleType(name)
        package.__path__ = [str(code / "src" / name)]
        sys.modules[name] = package
    stubs: dict[str, dict[str, object]] = {
        "deepspeed": {"DeepSpeedEngine": type("DeepSpeedEngine", (), {})},
        "omegaconf": {"OmegaConf": _Container, "DictConfig": dict},
        "data": {"get_datasets": None, "get_collators": None},
    }
    for name, attributes in stubs.items():
        module = sys.modules.setdefault(name, ModuleType(name))
        module.__spec__ = module.__spec__ or ModuleSpec(name, None)
        for key, value in attributes.items():
            setattr(module, key, value)
    sys.path.insert(0, str(code / "src"))
    return importlib.import_module


class _Container:
    """In place of omegaconf's, for plain dictionaries."""

    @staticmethod
    def to_container(content: Mapping[str, Any], **_: object) -> dict[str, Any]:
        """A copy."""
        return dict(content)


def make_world() -> World:
    """The tiny built-in model moved by noise, as reference the model itself, and four examples of each kind."""
    loaded = geffect.load_model("builtin:tiny", "float64")
    reference, model = copy.deepcopy(loaded.model).eval().requires_grad_(False), loaded.model.eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(noise, alpha=NOISE * float(parameter.std()))
    forget, retain = (_rows(f"builtin:authors/{name}[:{EXAMPLES}]") for name in ("forget", "retain"))
    sets = {
        "forget": forget,
        "retain": retain,
        "refusals": [{**row, "answer": REFUSALS[i]} for i, row in enumerate(forget)],
        "others": [{**row, "answer": row["perturbed_answer"][0]} for row in forget],
    }
    batches = {name: _batch(loaded.tokenizer, rows) for name, rows in sets.items()}
    return World(model, reference, loaded.tokenizer, batches)


def _rows(spec: str) -> list[dict[str, Any]]:
    return list(geffect.load_set(spec).examples)


def _batch(tokenizer: Any, rows: Sequence[Mapping[str, Any]]) -> Batch:
    return dict(collate(encode_set(tokenizer, make_set("rows", [dict(row) for row in rows])), pad_id_of(tokenizer)))


def _inputs(batch: Batch) -> Batch:
    return {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}


def their_loss(world: World, trainer: Trainer, load: Callable[[str], ModuleType]) -> Tensor:
    """The loss of their trainer's ``compute_loss``, made without the Trainer around it."""
    forget, retain, other = (_inputs(world.batches[name]) for name in ("forget", "retain", trainer.answers))
    if not trainer.module:
        plain: Tensor = world.model(**other).loss
        return plain
    cls = getattr(load(f"trainer.unlearn.{trainer.module}"), trainer.handler)
    made = cls.__new__(cls)
    values = {"gamma": 1.0, "alpha": 1.0, "retain_loss_type": "NLL", "ref_model": world.reference, **trainer.arguments}
    vars(made).update(values, model=world.model, preferences=[values["gamma"], values["alpha"]], primal_dual=False)
    vars(made).update(log=lambda _: None, loss_names=["forget", "retain"], control_vec=None)
    if trainer.handler == "RMU":
        models = {"model_module": world.model, "ref_module": world.reference}
        vars(made).update({name: made._get_matching_module(m, values["module_regex"]) for name, m in models.items()})
        made.control_vec = control(world, trainer)
    inputs = {"forget": {"original": forget, "alternate": other} if trainer.handler == "DPO" else forget}
    loss: Tensor = made.compute_loss(world.model, {**inputs, "retain": retain})
    return loss


def our_loss(world: World, trainer: Trainer) -> Tensor:
    """The loss of the objective that the importer makes of the same arguments, as `geffect.unlearn` computes it."""
    text = objective_text(trainer.handler, trainer.arguments) if trainer.module else "po"
    objective, batches = make_objective(text), dict(world.batches)
    batches["alternative"] = batches[trainer.answers]
    skipped = batches["forget"]["labels"].clone()
    first = (skipped != IGNORE_INDEX).cumsum(1) <= 1
    batches["forget"] = {**batches["forget"], "skipped_1_labels": skipped.masked_fill(first, IGNORE_INDEX)}
    counts = {name: Counts.of([batch]) for name, batch in batches.items()}

    def run(name: str) -> Any:
        needs = objective.needs_on(name)
        with torch.no_grad():
            ref = forward(world.reference, batches[name], needs | {"hidden"})
        outputs = forward(world.model, batches[name], needs | {"hidden"})
        return replace(outputs, ref_nll=ref.nll, ref_logits=ref.logits, ref_hidden=ref.hidden)

    losses = []
    for name in sorted({term.on for _, term in objective.terms}):
        outputs = replace(run(name), alternative=run("alternative") if name == "forget" else None)
        losses.append(objective.loss(name, outputs, counts))
    return torch.stack(losses).sum()


def differences(world: World, ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """|L − L'| / |L'|, and ‖∇L − ∇L'‖ / ‖∇L'‖ over all weights."""
    parameters = [p for p in world.model.parameters() if p.requires_grad]
    both = (torch.autograd.grad(each, parameters, allow_unused=True) for each in (ours, theirs))
    flat = [
        torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, each, strict=True)])
        for each in both
    ]
    loss = abs(float(ours - theirs)) / abs(float(theirs))
    return loss, float((flat[0] - flat[1]).norm() / flat[1].norm())


@contextmanager
def mean_nll_in_float64(model: Any) -> Iterator[None]:
    """Within, the model's own loss is computed in the dtype of its logits; transformers casts them to float32."""

    def mean_nll(logits: Tensor, labels: Tensor, **_: object) -> Tensor:
        return functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE_INDEX
        )

    before = model.loss_function
    model.loss_function = mean_nll
    try:
        yield
    finally:
        model.loss_function = before


def objectives(world: World, load: Callable[[str], ModuleType]) -> list[dict[str, Any]]:
    """A row a trainer: both losses, relative differences of them and of the gradients, the same once explained."""
    rows = []
    for name, trainer in TRAINERS.items():
        ours, theirs = our_loss(world, trainer), their_loss(world, trainer, load)
        loss, gradient = differences(world, ours, theirs)
        row = {"kind": "objective", "name": name, "ours": float(ours), "theirs": float(theirs)}
        row |= {"text": objective_text(trainer.handler, trainer.arguments) if trainer.module else "po"}
        row |= {"difference": loss, "gradient": gradient, "reason": trainer.reason or NLL}
        with mean_nll_in_float64(world.model):
            again = trainer.quirk(world, trainer) if trainer.quirk else our_loss(world, trainer)
            pair = differences(world, again, their_loss(world, trainer, load))
        row["explained"] = max(pair)
        rows.append(row)
    return rows


class Scored:
    """Sets under a model by both codes: numbers an example, and what is made of them."""

    def __init__(self, model: Any, world: World, load: Callable[[str], ModuleType]) -> None:
        self.model, self.tokenizer, self.load = model, world.tokenizer, load
        self.sets = {name: _rows(f"builtin:authors/{name}[:{SCORED}]") for name in ("forget", "retain", "heldout")}

    def ours(self, name: str, metric: str, column: str = "answer") -> list[float]:
        """Our numbers, one an example, of the answers of a column."""
        examples = make_set(name, [{**row, "answer": row[column]} for row in self.sets[name]])
        assert isinstance(examples, QASet)
        view = View(self.model, self.tokenizer, examples, partial(encode_set, self.tokenizer), 5, WRITTEN, ())
        return METRICS[metric](view)

    def items(self, name: str, column: str = "answer", part: int = 0) -> list[Any]:
        """Encoded examples with the answers of a column."""
        texts = [row[column] for row in self.sets[name]]
        answers = [each[part] if isinstance(each, list) else each for each in texts]
        rows = [{**row, "answer": answer} for row, answer in zip(self.sets[name], answers, strict=True)]
        return list(enumerate(encode_set(self.tokenizer, make_set(name, rows))))

    def collate(self, items: Sequence[Any]) -> Any:
        """Their batch: ids, mask, labels and ``index``; of several answers, one such batch an answer."""
        if items and isinstance(items[0], list):
            return {str(i): self.collate(part) for i, part in enumerate(zip(*items, strict=True))}
        batch = _inputs(dict(collate([example for _, example in items], pad_id_of(self.tokenizer))))
        return {**batch, "index": torch.tensor([index for index, _ in items])}

    def prompts(self, items: Sequence[Any]) -> Batch:
        """Their batch of prompts, padded on the left, with the answers as labels."""
        prompts = [prompt_of(example) for _, example in items]
        width, pad = max(map(len, prompts)), pad_id_of(self.tokenizer)
        ids = torch.tensor([[pad] * (width - len(each)) + each for each in prompts])
        mask = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in prompts])
        labels = [torch.tensor([label for label in example.labels if label != IGNORE_INDEX]) for _, example in items]
        padded = nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX)
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": padded,
            "index": torch.tensor([i for i, _ in items]),
        }

    def theirs(self, metric: str, **arguments: Any) -> dict[str, Any]:
        """What their metric returns."""
        module = {"ks_test": "privacy", "privleak": "privacy", "hm_aggregate": "utility"}.get(metric, "memorization")
        module = "mia" if metric.startswith("mia") else module
        function = getattr(self.load(f"evals.metrics.{module}"), metric)._metric_fn
        result: dict[str, Any] = function(self.model, **{"batch_size": 5, "tokenizer": self.tokenizer, **arguments})
        return result

    def on(self, metric: str, name: str = "forget", column: str = "answer", **arguments: Any) -> dict[str, Any]:
        """Their metric of one set; all answers of a column that has several."""
        parts = [self.items(name, column, part) for part in range(3 if column == "perturbed_answer" else 1)]
        data = [list(each) for each in zip(*parts, strict=True)] if len(parts) > 1 else parts[0]
        return self.theirs(metric, data=data, collators=self.collate, **arguments)

    def truth(self, name: str, aggregator: str) -> dict[str, Any]:
        """Their truth ratio of one set."""
        answers = {"correct": "paraphrased_answer", "wrong": "perturbed_answer"}
        found = {key: self.on("probability", name, column) for key, column in answers.items()}
        return self.theirs("truth_ratio", pre_compute=found, aggregator=aggregator)

    def rouge(self, name: str) -> dict[str, Any]:
        """Their ROUGE-L recall of greedy answers."""
        arguments = {"do_sample": False, "max_new_tokens": WRITTEN, "use_cache": True}
        found = {"data": self.items(name), "collators": self.prompts, "generation_args": arguments}
        return self.theirs("rouge", rouge_type="rougeL_recall", **found)

    def attack(self, metric: str, **arguments: Any) -> dict[str, Any]:
        """Their membership attack on the forget set against the heldout set."""
        data = {name: self.items(name) for name in ("forget", "heldout")}
        data["holdout"] = data.pop("heldout")
        return self.theirs(metric, data=data, collators=self.collate, **arguments)


def _values(result: Mapping[str, Any], key: str) -> list[float]:
    return [float(np.mean(each[key])) for each in result["value_by_index"].values()]


BOTH = ("forget", "heldout")
SINGLE = "they compute it in float32"
NORM = "theirs is the mean of the parameter tensors' norms, without the last token; ours the norm over all weights"
ARITHMETIC = "of several wrong answers they take the geometric mean of P, ours (as TOFU's utility) the arithmetic one"
ADDED = "they add 1e-10 to P(right)"


def metrics(world: World, load: Callable[[str], ModuleType]) -> list[dict[str, Any]]:
    """A row a metric: both values, and the largest difference of an example where there is a number an example."""
    other = geffect.load_model("builtin:tiny-untrained", "float64").model.eval()
    now, before = Scored(world.model, world, load), Scored(other, world, load)
    for each in (now, before):  # three wrong answers each, as `Scored.on` gives their code
        for rows in each.sets.values():
            rows[:] = [{**row, "perturbed_answer": row["perturbed_answer"][:3]} for row in rows]
    return [
        _row("probability", now.ours("forget", "probability"), now.on("probability"), "prob"),
        _row("ROUGE-L recall", now.ours("forget", "rouge_l_recall"), now.rouge("forget"), "rougeL_recall"),
        _row(
            "exact memorization",
            now.ours("forget", "exact_memorization"),
            now.on("exact_memorization"),
            "score",
            SINGLE,
        ),
        _row(
            "extraction strength",
            now.ours("forget", "extraction_strength_floored"),
            now.on("extraction_strength"),
            "score",
        ),
        _options_row(now),
        *_truth_rows(now),
        *_attack_rows(now),
        *_reference_rows(now, before),
        _utility_row(now),
    ]


def _row(
    name: str,
    ours: Sequence[float] | float,
    theirs: Mapping[str, Any],
    key: str = "",
    reason: str = "",
    explained: Sequence[float] | float | None = None,
) -> dict[str, Any]:
    """Ours, theirs, and the largest difference: of an example's numbers, else of the two; ``explained``: ours again."""
    values = _values(theirs, key) if key else []

    def largest(numbers: Sequence[float] | float) -> float:
        pairs = [(float(np.mean(numbers)), float(theirs["agg_value"]))]
        pairs += zip(np.atleast_1d(numbers).tolist(), values, strict=True) if key else ()
        return max(abs(a - b) / max(abs(b), 1e-12) if a != b else 0.0 for a, b in pairs)

    row = {"kind": "metric", "name": name, "ours": float(np.mean(ours)), "theirs": float(theirs["agg_value"])}
    again = {} if explained is None else {"explained": largest(explained)}
    return {**row, "difference": largest(ours), "reason": reason, **again}


def _options_row(now: Scored) -> dict[str, Any]:
    """The right answer's probability among a question's choices."""
    columns = {"correct": "answer", "wrong": "perturbed_answer"}
    found = {key: now.on("probability", "forget", column) for key, column in columns.items()}
    theirs = now.theirs("probability_w_options", pre_compute=found)
    return _row("normalized probability", now.ours("forget", "probability_normalized"), theirs, "prob")


def as_theirs(now: Scored, name: str) -> list[float]:
    """Our geometric truth ratios of a set, with 1e-10 added to P(right)."""
    right = now.ours(name, "probability", "paraphrased_answer")
    return [ratio * p / (p + 1e-10) for ratio, p in zip(now.ours(name, "truth_ratio_geometric"), right, strict=True)]


def _retain_truth(now: Scored, name: str) -> float:
    return float(np.mean([max(0.0, 1 - ratio) for ratio in as_theirs(now, name)]))


def _truth_rows(now: Scored) -> list[dict[str, Any]]:
    closer, better = now.truth("forget", "closer_to_1_better"), now.truth("retain", "true_better")
    ratio = {**closer, "agg_value": float(np.mean(_values(closer, "score")))}
    ratios = as_theirs(now, "forget")
    forget = float(np.mean([min(each, 1 / (each + 1e-10)) for each in ratios]))
    geometric = now.ours("forget", "truth_ratio_geometric")
    return [
        _row("truth ratio (truth_ratio_geometric)", geometric, ratio, "score", ADDED, ratios),
        _row("forget truth (forget_truth)", now.ours("forget", "forget_truth"), closer, "", ARITHMETIC, forget),
        _row(
            "retain truth (retain_truth)",
            now.ours("retain", "retain_truth"),
            better,
            "",
            ARITHMETIC,
            _retain_truth(now, "retain"),
        ),
    ]


def mean_norms(now: Scored, name: str) -> list[float]:
    """Of each example, the mean over parameter tensors of the norm of ∇ mean log p, without the last token."""
    found = []
    for _, example in now.items(name):
        labels = torch.tensor(example.labels[1:-1])
        log_p = now.model(torch.tensor([example.input_ids])).logits[0, :-2].log_softmax(-1)
        kept = labels != IGNORE_INDEX
        loss = -log_p[kept].gather(1, labels[kept][:, None]).mean()
        gradients = torch.autograd.grad(loss, list(now.model.parameters()))
        found.append(float(torch.stack([each.norm() for each in gradients]).mean()))
    return found


def _attack_rows(now: Scored) -> list[dict[str, Any]]:
    cases = {"loss": ("loss", {}), "zlib": ("zlib", {}), "min_k": ("min_k", {"k": K})}
    cases |= {
        "min_k_plus_plus": ("min_k_plus_plus", {"k": K}),
        "gradnorm": ("gradient_norm", {"p": P, "batch_size": 1}),
    }
    reasons = {"min_k": SINGLE, "min_k_plus_plus": SINGLE, "gradnorm": NORM}
    rows = []
    for name, (metric, arguments) in cases.items():
        found = now.attack(f"mia_{name}", **arguments)
        ours, held = now.ours("forget", metric), now.ours("heldout", metric)
        reason = reasons.get(name, "")
        again = [mean_norms(now, each) for each in ("forget", "heldout")] if name == "gradnorm" else []
        explained, auc = (again[0], scores.auc(*again)) if again else (None, None)
        rows.append(_row(f"{name}, of an example", ours, found["forget"], "score", reason, explained))
        rows.append(_row(f"{name}, AUC", scores.auc(ours, held), found, "", reason if again else "", auc))
    return rows


def _reference_rows(now: Scored, before: Scored) -> list[dict[str, Any]]:
    """Privleak and forget quality, with an untrained model as the one to compare with."""
    aucs = [scores.auc(each.ours("forget", "min_k"), each.ours("heldout", "min_k")) for each in (now, before)]
    attacks = [each.attack("mia_min_k", k=K) for each in (now, before)]
    truths = [each.truth("forget", "closer_to_1_better") for each in (now, before)]
    p_value = scores.forget_quality(*(each.ours("forget", "log_truth_ratio_geometric") for each in (now, before)))
    leak, quality = (
        now.theirs(name, pre_compute={"forget": a}, reference_logs={"retain_model_logs": {"retain": b}}, ref_value=0.5)
        for name, (a, b) in (("privleak", attacks), ("ks_test", truths))
    )
    ours = [[now.ours(name, "loss"), before.ours(name, "loss")] for name in BOTH]
    sides = [[a - b for a, b in zip(*each, strict=True)] for each in ours]
    data = dict(zip(("forget", "holdout"), map(now.items, BOTH), strict=True))
    cls, mia_auc = now.load("evals.metrics.mia.reference").ReferenceAttack, now.load("evals.metrics.mia.utils").mia_auc
    against = mia_auc(cls, now.model, data, now.collate, 5, reference_model=before.model)
    return [
        _row("reference, of an example", sides[0], against["forget"], "score"),
        _row("reference, AUC", scores.auc(*sides), against),
        _row("privleak", scores.privleak(*aucs), leak),
        _row("forget quality (KS)", p_value, quality),
    ]


def _utility_row(now: Scored) -> dict[str, Any]:
    """The harmonic mean of probability, ROUGE and truth of two sets."""
    ours = [
        float(np.mean(now.ours(name, metric)))
        for name in ("retain", "heldout")
        for metric in ("probability", "rouge_l_recall", "retain_truth")
    ]
    parts: dict[str, Mapping[str, Any]] = {}
    for name in ("retain", "heldout"):
        parts |= {f"{name} p": now.on("probability", name), f"{name} rouge": now.rouge(name)}
        parts |= {f"{name} truth": now.truth(name, "true_better")}
    theirs = now.theirs("hm_aggregate", pre_compute=parts)
    again = [*ours[:2], _retain_truth(now, "retain"), *ours[3:5], _retain_truth(now, "heldout")]
    return _row("model utility", scores.model_utility(ours), theirs, "", ARITHMETIC, scores.model_utility(again))


def versions(code: Path) -> dict[str, str]:
    """What was compared, where and when."""
    asked = ["git", "-C", str(code), "log", "-1", "--format=%h of %cs"]
    commit = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    found = {"open-unlearning": commit or "of no known commit", "geffect": geffect.__version__}
    found |= {"torch": torch.__version__, "transformers": transformers.__version__, "Python": platform.python_version()}
    return {**found, "date": datetime.date.today().isoformat(), "device": "cpu"}


def page(frame: pd.DataFrame, about: Mapping[str, str]) -> str:
    """The page of documentation."""
    kinds = {kind: frame[frame["kind"] == kind] for kind in ("objective", "metric")}
    told = ", ".join(f"{name} {value}" for name, value in about.items() if name not in ("date", "device"))
    far = frame[["difference", "gradient"]].max(axis=1) > EQUAL
    apart, left = sum(far), frame.loc[far, "explained"].max()
    lines = [
        "# Agreement with open-unlearning",
        "",
        f"*Written by `python -m analysis.open_unlearning --code PATH` on {about['date']} ({about['device']}): "
        f"{told}.*",
        "",
        "Both codes see one model (`builtin:tiny`, its weights moved by noise), the same token ids and labels, in "
        f"float64. Of {len(frame)} rows {apart} differ by more than {EQUAL:g}, each for the reason that is named "
        f"below: once that is written into our formula, they agree to {left:.0e}.",
        "",
        "## Objectives",
        "",
        f"A batch of {EXAMPLES} forget and {EXAMPLES} retain examples of different lengths. Relative differences, of "
        "the loss and of the gradient over all weights (‖ours − theirs‖ / ‖theirs‖). *Explained*: the larger of both "
        "once the reason is written into our formula, and transformers' own loss is computed in float64.",
        "",
        "| trainer | here | loss, ours | loss, theirs | difference | gradient | explained |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in kinds["objective"].to_dict("records"):
        cells = [
            row["name"],
            f"`{row['text']}`",
            f"{row['ours']:.6g}",
            f"{row['theirs']:.6g}",
            f"{row['difference']:.1e}",
        ]
        cells += [f"{row['gradient']:.1e}", f"{row['explained']:.1e}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *_reasons(kinds["objective"]), "", "## Metrics", ""]
    lines += [
        f"Of {SCORED} examples, {WRITTEN} tokens of an answer, three wrong answers a question. *Difference*: the "
        "largest relative one of an example, where there is a number an example, or of the two values.",
        "",
        "| metric | ours | theirs | difference | explained |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    for row in kinds["metric"].to_dict("records"):
        explained = "" if np.isnan(row["explained"]) else f"{row['explained']:.1e}"
        cells = [row["name"], f"{row['ours']:.6g}", f"{row['theirs']:.6g}", f"{row['difference']:.1e}", explained]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_reasons(kinds["metric"]), ""])


def _reasons(frame: pd.DataFrame) -> list[str]:
    """Why rows differ, one line a reason."""
    far = frame[frame[["difference", "gradient"]].max(axis=1) > EQUAL]
    names: dict[str, list[str]] = {}
    for row in far.to_dict("records"):
        names.setdefault(str(row["reason"] or "no reason known"), []).append(str(row["name"]))
    return [f"- {', '.join(each)}: {reason}." for reason, each in names.items()]


def main(code: Path, out: Path, docs: Path) -> None:
    """Compare, and write the table and the page."""
    warnings.simplefilter("ignore")
    world = make_world()
    load = imported(code)
    frame = pd.DataFrame([*objectives(world, load), *metrics(world, load)])
    about = versions(code)
    out.mkdir(parents=True, exist_ok=True)
    docs.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(out / "agreement.csv", index=False, float_format="%.9g")
    rows = json.loads(frame.to_json(orient="records", double_precision=15))
    content = {**about, "rows": [{key: value for key, value in row.items() if value is not None} for row in rows]}
    (out / "agreement.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    docs.write_text(page(frame, about), encoding="utf-8")
    print(frame.drop(columns=["text", "reason"]).to_string(index=False, float_format="%.3g"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--code", type=Path, required=True, help="a checkout of open-unlearning")
    parser.add_argument("--out", type=Path, default=Path("figures/open_unlearning"))
    parser.add_argument("--docs", type=Path, default=Path("docs/results/open_unlearning.md"))
    chosen = parser.parse_args()
    main(chosen.code, chosen.out, chosen.docs)
