"""A Hugging Face Trainer that unlearns and measures its own updates, by `geffect.measurement`."""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from geffect.config import UnlearnConfig
from geffect.core.distributed import gather_tensors, rank
from geffect.core.forward import Outputs, add_positions
from geffect.core.gradients import check_no_hooks
from geffect.core.gram import Gram, cosine, inner
from geffect.core.layers import by_scope, find_tied_weights, trainable_parameters
from geffect.core.masks import GradientMask
from geffect.core.splits import TARGETS, of_role, role_of, split_names
from geffect.data.encode import EncodedExample, collate
from geffect.errors import GeffectError
from geffect.io.readers import JSON, read_json
from geffect.measurement.ema import published_estimates
from geffect.measurement.measurement import Batch, Measured, Measurement
from geffect.measurement.metric import adam_metric
from geffect.measurement.step import Step
from geffect.measurement.update import PredictionCheck
from geffect.models.scoring import Reference, check_same_shape, check_trainable, forward_beside, in_evaluation_mode
from geffect.objectives.base import window_counts
from geffect.record.reader import NO_PRODUCTS, Products, StepLine
from geffect.record.schema import GRAMS
from geffect.record.writer import replacing
from geffect.stopping import first_broken
from geffect.training.batches import (
    Columns,
    PairedDataset,
    PairedSampler,
    check_columns,
    check_starts_at_one,
    collate_sets,
)
from geffect.training.checkpoints import RECTIFIER, load_rectifier, save_rectifier
from geffect.training.trainer import RecordingTrainer, example_numbers, make_loader, set_mode

if TYPE_CHECKING:
    from transformers.trainer_utils import TrainOutput

LOGGER = logging.getLogger(__name__)
TERMS_FILE = "objective.json"  # what stateful terms carry on
BROKEN = "Lower --learning-rate or set --max-grad-norm, and look at those examples with geffect preview"
TARGET_EXAMPLES = 64  # of a target, at most, that a step's effects are measured on
KNOWN = 0.9  # token accuracy below which there is little to unlearn, or to keep


class UnlearnTrainer(RecordingTrainer):
    """Descends an unlearning objective, rectified, and measures its gradients while it does.

    Every step runs: losses of each micro-batch → gradients → (window complete) rectify → clip → optimizer step →
    correct. Every ``config.diagnose_every`` steps, from step 0, the Gram of all gradients goes into the line.

    Args:
        model: the model; its trainable parameters are what a gradient covers.
        args: training arguments; a batch is so many forget examples, and as many of each other set.
        config: what is descended, how it is rectified, and what is measured. With ``shard``, each process keeps a part
            of the model and of the reference, which `shard_start` has sharded (FSDP2).
        sets: set → encoded examples: ``forget``, ``retain``, and ``general`` and ``alternative`` where needed; of
            several domains ``forget/privacy`` and so on (`geffect.core.splits`).
        columns: what the objective needs of each example (`compute_columns`).
        targets: name → examples of a further set, on which the effects are measured.
        reference: the frozen start, where the objective needs more of it than token NLLs.
        frozen: entries that the updates leave alone.
        layers: parameter → layer, see `Measurement`.
        reuse_gradients: see `Measurement`.
        past: the lines of a resumed run.
        **kwargs: see `RecordingTrainer`.
    """

    wraps = False  # `Passes.gather` sums the gradients of replicas

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        config: UnlearnConfig,
        sets: Mapping[str, list[EncodedExample]],
        columns: Columns | None = None,
        targets: Mapping[str, list[EncodedExample]] | None = None,
        reference: Reference | None = None,
        frozen: GradientMask | None = None,
        layers: Mapping[str, str] | None = None,
        reuse_gradients: bool = True,
        past: Sequence[StepLine] = (),
        **kwargs: Any,
    ) -> None:
        check_trainable(model)
        check_no_hooks(trainable_parameters(model))
        super().__init__(model, args, train_dataset=PairedDataset(sets), **kwargs)
        self.config, self.past = config, list(past)
        self.sets, self.columns, self.reference = dict(sets), columns or {}, reference
        check_columns(self.sets, self.columns)
        if reference is not None:
            check_same_shape(model, reference.model)
        self.targets = dict(targets or {})
        self.current: Step | None = None
        self.met = ""  # the examples of the current window, for a message
        rule = config.rectifier.rule
        self.measurement = Measurement(
            trainable_parameters(model),
            self._forward,
            config.objective,
            rule,
            free=reuse_gradients,
            keep_dropout=config.keep_dropout,
            tie=find_tied_weights(model),
            overlap=config.overlap,
            keep=bool(config.save_gradients),
            keep_on=self.keep_on,
            prediction=self._prediction(model),
            standard_errors=config.standard_errors,
            labels=layers or {},
            frozen=frozen,
            layers=by_scope(model, rule.scope),
            preconditioner=adam_metric(trainable_parameters(model), lambda: self.optimizer),
            adam_products=config.adam_metric,
            targets={name: self._probe(each, TARGET_EXAMPLES) for name, each in self.targets.items()},
            max_rise=config.max_rise,
        )

    def train(self, resume_from_checkpoint: Path | str | None = None, **kwargs: Any) -> "TrainOutput | None":
        """As `RecordingTrainer.train`, after a check that the reference is the start."""
        self.check_reference()
        return super().train(resume_from_checkpoint, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As `RecordingTrainer.evaluate`; at the start it says how well the model knows each set."""
        metrics = super().evaluate(*args, **kwargs)
        accuracies = {name: scores["accuracy"] for name, scores in self.line["evaluation"].items()}
        if self.state.global_step == 0:
            self._introduce(accuracies)
        self._stop_once_forgotten(max(of_role(accuracies, "forget"), default=1.0))
        self._stop_where_broken([*self.past, _line_of(self.line)])
        if self.config.mode == "paper":
            loader = self.get_train_dataloader()
            self.line["paper"] = paper_lines(self.measurement, map(self.on_device, loader))
        return metrics

    def live_scores(self, scores: Mapping[str, Any]) -> dict[str, float | str | None]:
        """The losses of the forget and of the heldout (else retain) set; of domains, their mean."""
        return losses_by_role({name: each["loss"] for name, each in scores.items()})

    def _stop_once_forgotten(self, accuracy: float) -> None:
        until = self.config.until_accuracy
        if accuracy >= until:
            return
        if self.state.global_step == 0:  # told to stop here, Hugging Face's loop would still take a step
            message = f"The forget set has a token accuracy of {accuracy:.3f}, below --until-accuracy {until}"
            raise GeffectError(message, remedy="Lower --until-accuracy, or train on the set first (geffect finetune)")
        self.control.should_training_stop = self.control.should_save = True

    def finish_line(self) -> None:
        """As `RecordingTrainer.finish_line`; then the stop rules are applied."""
        self.past.append(_line_of({"step": self.state.global_step - 1} | self.line))
        super().finish_line()
        self._stop_where_broken(self.past)

    def _stop_where_broken(self, lines: Sequence[StepLine]) -> None:
        broken = first_broken(self.config.stop, lines)
        if broken is None or "stopped" in self.line:
            return
        LOGGER.info("stopping after step %d: %s", self.state.global_step, broken.reason)
        self.line["stopped"] = broken._asdict()
        self.control.should_evaluate |= "evaluation" not in self.line
        self.control.should_training_stop = self.control.should_save = True

    def _introduce(self, accuracies: dict[str, float]) -> None:
        LOGGER.info("start: token accuracy %s", ", ".join(f"{name} {value:.3f}" for name, value in accuracies.items()))
        for name in (name for name, value in accuracies.items() if value < KNOWN and name not in self.targets):
            LOGGER.warning(
                "this model does not know the %s set (below %s): fit it first (geffect finetune)", name, KNOWN
            )

    def check_reference(self) -> None:
        """Refuse another model's reference: the first forget examples have other likelihoods under it."""
        forget = split_names("forget", self.sets)[0]
        if "ref_nll" not in self.columns.get(forget, {}):
            return
        batch = self.collate([{forget: example} for example in self.sets[forget][:8]])[forget]
        with in_evaluation_mode(self.model), torch.no_grad():
            outputs = self._forward(self.on_device(batch), frozenset(), dropout=False)
        dtype = torch.bfloat16 if self.config.autocasts else next(self.model.parameters()).dtype
        check_starts_at_one(outputs, atol=max(1e-3, 10 * torch.finfo(dtype).eps))

    def _forward(self, batch: Batch, needs: frozenset[str], *, dropout: bool) -> Outputs:
        if self.model.training != dropout or not dropout:
            set_mode(self.model, dropout=dropout, checkpointing=not self.config.keep_dropout)
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.config.autocasts):
            return forward_beside(self.model, self.reference, batch, needs)

    def collate(self, meetings: Sequence[Mapping[str, EncodedExample]]) -> dict[str, Batch]:
        """Pad a micro-batch, each set to its own length, with the columns of each."""
        examples = {name: [each[name] for each in meetings] for name in meetings[0]}
        return collate_sets(examples, self.columns, self.pad_id)

    def get_train_dataloader(self) -> DataLoader[dict[str, Batch]]:
        """Batches of examples of all sets, in an order that depends on seed and epoch alone."""
        sampler = PairedSampler({name: len(examples) for name, examples in self.sets.items()}, self.args.seed)
        return make_loader(self, sampler, self.collate)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Batch]], None]:
        """The micro-batches of a window; opens it with the counts every loss is divided by."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            measure = self.state.global_step % self.config.diagnose_every == 0
            counts = {name: each.over_processes() for name, each in window_counts(batches).items()}
            self.current = Step(self.measurement, counts, measure=measure)
            self.current.ascend(map(self._placed, batches))
            self.met = "; ".join(f"{name} {example_numbers([batch[name] for batch in batches])}" for name in batches[0])
        return batches, None

    @property
    def step(self) -> Step:
        """The optimizer step that runs."""
        if self.current is None:
            raise RuntimeError("no window of micro-batches has begun")
        return self.current

    def training_step(self, model: nn.Module, inputs: dict[str, Batch], num_items_in_batch: object = None) -> Tensor:
        """One micro-batch; on the optimizer step's boundary, the rectified gradient is left in ``.grad``."""
        last = self.accelerator.sync_gradients
        share = self.step.micro_batch(self._placed(inputs), last=last)
        if last:
            measured = self._finish()
            self.line |= measured.line() | {"lr": [group["lr"] for group in self.optimizer.param_groups]}
            if measured.gram is not None:
                self.log(summary(measured))
                self._save_gradients()
        return share

    def _placed(self, inputs: Mapping[str, Batch]) -> dict[str, Batch]:
        return self.on_device({name: add_positions(batch) for name, batch in inputs.items()})

    def after_update(self) -> None:
        """The optimizer has stepped, the learning rate has not moved: correct, and measure what was applied."""
        rates = {id(p): group["lr"] for group in self.optimizer.param_groups for p in group["params"]}
        by_name = {name: float(rates.get(id(p), 0.0)) for name, p in self.measurement.parameters.items()}
        measured = self.step.after(by_name)
        if measured is not None:
            self.line |= measured.line()

    def _finish(self) -> Measured:
        try:
            return self.step.finish()
        except FloatingPointError as error:
            where = f"{error} in step {self.state.global_step}, examples: {self.met}"
            raise GeffectError(f"A loss or gradient is not finite: {where}", remedy=BROKEN) from error

    @property
    def keep_on(self) -> torch.device | None:
        """Where gradients kept for diagnostics are held; None: on their own device."""
        return None if self.config.keep_on == "device" else torch.device(self.config.keep_on)

    def _prediction(self, model: nn.Module) -> PredictionCheck | None:
        if not self.config.prediction:
            return None
        sets = {name: each for name, each in self.sets.items() if role_of(name) in TARGETS} | self.targets
        probe = {name: self._probe(each, self.config.prediction) for name, each in sets.items()}
        return PredictionCheck(
            trainable_parameters(model),
            lambda batch: self._forward(batch, frozenset(), dropout=False),
            probe,
            self.keep_on,
        )

    def _probe(self, examples: Sequence[EncodedExample], count: int) -> list[Batch]:
        """Evenly spaced examples of a set, in batches on the model's device."""
        batches = probe_batches(examples, count, self.args.per_device_train_batch_size, self.pad_id)
        return [self.on_device(add_positions(each)) for each in batches]

    def _save_gradients(self) -> None:
        directory = Path(self.args.output_dir).parent / "gradients" / f"step-{self.state.global_step}"
        for name in self.config.save_gradients:
            gradient = gather_tensors(self.step.gradient(name), self.measurement.parameters)
            if rank():
                continue
            directory.mkdir(parents=True, exist_ok=True)
            with replacing(directory / f"{name}.safetensors") as file:
                save_file(gradient, file)

    def save_memory(self, directory: Path) -> None:
        """Write what the rectifier and stateful terms carry from step to step."""
        save_rectifier(directory, self.measurement.state, self.measurement.parameters)
        if any(self.measurement.term_states) and rank() == 0:
            with replacing(directory / TERMS_FILE) as file:
                file.write_text(json.dumps([dict(each) for each in self.measurement.term_states]), encoding="utf-8")

    def memory_files(self) -> list[str]:
        """The files of a rectifier with a memory, and of terms with a state."""
        files = {RECTIFIER: bool(self.measurement.rectifier.memories), TERMS_FILE: any(self.measurement.term_states)}
        return [name for name, present in files.items() if present]

    def load_memory(self, directory: Path) -> None:
        """Read what `save_memory` wrote."""
        self.measurement.state.update(load_rectifier(directory, self.measurement.parameters))
        if (directory / TERMS_FILE).exists():
            self.measurement.term_states = read_json(directory / TERMS_FILE)


def losses_by_role(losses: Mapping[str, float]) -> dict[str, float | str | None]:
    """The forget loss beside that of the heldout (else retain) set, each the mean over domains, for a progress bar."""
    roles = ("forget", "heldout" if of_role(losses, "heldout") else "retain")
    parts = {role: of_role(losses, role) for role in roles}
    return {role: sum(part) / len(part) for role, part in parts.items() if part}


def probe_batches(examples: Sequence[EncodedExample], count: int, batch_size: int, pad_id: int) -> list[Batch]:
    """Evenly spaced examples of a set, all where there are fewer, padded in batches."""
    count = min(count, len(examples))
    probes = [examples[i * len(examples) // count] for i in range(count)]
    return [collate(probes[i : i + batch_size], pad_id) for i in range(0, count, batch_size)]


def paper_lines(run: Measurement, micro_batches: Iterable[Mapping[str, Batch]]) -> list[dict[str, JSON]]:
    """The published script's estimates at this checkpoint, as a record's lines."""
    return [{"call": call} | measured.line() for call, measured in published_estimates(run, micro_batches)]


def summary(measured: Measured) -> dict[str, float]:
    """A measured step in a few numbers, for trackers: G-effects, cosine, losses and norms."""
    gram = measured.gram
    if gram is None:
        return dict(measured.scalars)
    total, names = gram.total(), gram.names
    effects = {
        "unlearn_g_effect": inner(total, names, "forget", "objective"),
        "retain_g_effect": inner(total, names, "retain", "objective"),
        "cosine": cosine(total, names, "objective", "retain"),
    }
    if "rectified" in names:
        effects["rectified_retain_g_effect"] = inner(total, names, "retain", "rectified")
    return measured.scalars | effects


def _line_of(line: Mapping[str, Any]) -> StepLine:
    """A line that is not written yet, whose Grams are such still."""
    written = {key: value for key, value in line.items() if key not in GRAMS.values()}
    grams: list[Gram | None] = [line.get(key) for key in GRAMS.values()]
    products = [Products(gram.names, gram.total().tolist()) if gram else NO_PRODUCTS for gram in grams]
    return replace(StepLine.of(written, examples=False), products=products[0], adam_products=products[1])
