"""A Hugging Face Trainer that unlearns and measures its own updates.

No numerics of its own: rows, Gram and rectification are `geffect.measurement`'s.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from geffect.data import Encoded, Pairs, PairSampler, collate
from geffect.effects import cosine, inner
from geffect.errors import GeffectError
from geffect.measurement import Batch, Measured, Measurement
from geffect.metrics.likelihood import evaluating
from geffect.objectives import Counts, Objective, forward
from geffect.rectify import Rectifier
from geffect.rows import trainable
from geffect.training.recording import RecordingTrainer, make_loader

LOGGER = logging.getLogger(__name__)
STATE_FILE = "rectifier.safetensors"
KNOWN = 0.9  # token accuracy below which there is little to unlearn, or to keep


class UnlearnTrainer(RecordingTrainer):
    """Descends an unlearning objective, rectified, and measures its rows while it does.

    Every step runs: losses of each micro-batch → rows → (window complete) rectify → clip → optimiser step. Every
    ``diagnose_every`` steps, from step 0, the Gram of all rows goes into the line.

    Args:
        model: the model; its trainable parameters are what a row covers.
        args: training arguments; `per_device_train_batch_size` counts forget rows, as many retain rows go beside them.
        objective: what is descended.
        rectifier: what its row becomes.
        forget: encoded forget rows.
        retain: encoded retain rows.
        reference: token NLLs of each forget row under the start, where the objective needs them.
        diagnose_every: steps between two Grams.
        free_rows: see `Measurement`.
        **kwargs: see `RecordingTrainer`.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        objective: Objective,
        rectifier: Rectifier,
        forget: list[Encoded],
        retain: list[Encoded],
        reference: Sequence[Tensor] | None = None,
        diagnose_every: int = 1,
        free_rows: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, args, train_dataset=Pairs(forget, retain), **kwargs)
        self.reference, self.diagnose_every = reference, diagnose_every
        self.dtype = next(model.parameters()).dtype
        self.measurement = Measurement(trainable(model), self._forward, objective, rectifier, free_rows)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As Hugging Face's, once the reference is seen to be the start."""
        self.check_reference()
        if any(Path(self.args.output_dir).glob("checkpoint-*")):
            remedy = "name another output_dir"
            raise GeffectError(f"no checkpoints yet in {self.args.output_dir}", "those of another run", remedy)
        return super().train(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As `RecordingTrainer.evaluate`; at the start it says how well the model knows each set."""
        metrics = super().evaluate(*args, **kwargs)
        if self.state.global_step == 0:
            self._introduce({name: scores["accuracy"] for name, scores in self.line["evaluation"].items()})
        return metrics

    def _introduce(self, accuracies: dict[str, float]) -> None:
        LOGGER.info("start: token accuracy %s", ", ".join(f"{name} {value:.3f}" for name, value in accuracies.items()))
        for name in (name for name, value in accuracies.items() if value < KNOWN):
            LOGGER.warning("this model does not know the %s set (below %s): fit it first (geffect fit)", name, KNOWN)

    def check_reference(self) -> None:
        """Where θ = θ₀ every weight relative to the reference is 1; anything else is another model's reference.

        Raises:
            GeffectError: a weight differs from 1 by more than rounding.
        """
        terms = [term for _, term in self.measurement.objective.terms if "ref_nll" in term.needs]
        if not terms:
            return
        batch = self.collate([(row, row) for row in self.train_dataset.forget[:8]])["forget"]
        with evaluating(self.model), torch.no_grad():
            outputs = self._forward(self._prepare_inputs(batch))
        for term in terms:
            weight = term.weights(outputs)[outputs.mask]
            if not torch.allclose(weight, torch.ones_like(weight), atol=max(1e-3, 10 * torch.finfo(self.dtype).eps)):
                raise GeffectError("a reference that is the run's start, so that every weight is 1",
                                   f"weights from {weight.min():.3g} to {weight.max():.3g}",
                                   "compute the reference with the model as it is now")  # fmt: skip

    def _forward(self, batch: Batch) -> Any:
        with self.compute_loss_context_manager():
            return forward(self.model, batch)

    def collate(self, pairs: Sequence[tuple[Encoded, Encoded]]) -> dict[str, Batch]:
        """Pad a micro-batch's forget and retain rows, each set to its own length."""
        forget, retain = (collate(rows, self.pad_id) for rows in zip(*pairs, strict=True))
        if self.reference is not None:
            ref_nll = torch.zeros(forget["labels"].shape, dtype=self.reference[0].dtype)
            for i, index in enumerate(forget["index"].tolist()):
                ref_nll[i, : len(self.reference[index])] = self.reference[index]
            forget["ref_nll"] = ref_nll
        return {"forget": forget, "retain": retain}

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Pairs of rows in an order that depends on seed and epoch alone."""
        sampler = PairSampler(len(self.train_dataset.forget), len(self.train_dataset.retain), self.args.seed)
        return make_loader(self, self.train_dataset, sampler, self.collate)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """The micro-batches of a window; opens it with the counts every loss is divided by."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            counts = [Counts.of([batch[side] for batch in batches]) for side in ("forget", "retain")]
            measure = self.state.global_step % self.diagnose_every == 0
            self.step = self.measurement.begin(*counts, measure=measure)
        return batches, None

    def training_step(self, model: nn.Module, inputs: dict[str, Batch], num_items_in_batch: Any = None) -> Tensor:
        """One micro-batch; on the optimiser step's boundary, the rectified gradient is left in ``.grad``."""
        model.eval()  # dropout is zero, so that the objective's pass and the risk's see the same model
        last = self.accelerator.sync_gradients
        inputs = self._prepare_inputs(inputs)
        share = self.step.micro_batch(inputs["forget"], inputs["retain"], last=last)
        if last:
            measured = self._measured()
            self.line |= measured.scalars | {"lr": [group["lr"] for group in self.optimizer.param_groups]}
            if measured.gram is not None:
                self.line["gram"] = measured.gram
                self.log(summary(measured))
        return share

    def _measured(self) -> Measured:
        try:
            return self.step.finish()
        except FloatingPointError as error:
            remedy = "lower --learning-rate or set --max-grad-norm"
            raise GeffectError("finite losses", f"{error} in step {self.state.global_step}", remedy) from error

    def _save_state(self, directory: Path) -> None:
        if self.measurement.state:
            save_file({name: t.contiguous() for name, t in self.measurement.state.items()}, directory / STATE_FILE)


def summary(measured: Measured) -> dict[str, float]:
    """A measured step in a few numbers, for trackers: G-effects, cosine, losses."""
    gram = measured.gram
    if gram is None:
        return dict(measured.scalars)
    total, rows = gram.total(), gram.rows
    found = {
        "unlearn_g_effect": inner(total, rows, "forget", "objective"),
        "retain_g_effect": inner(total, rows, "retain", "objective"),
        "cosine": cosine(total, rows, "objective", "retain"),
    }
    if "rectified" in rows:
        found["rectified_retain_g_effect"] = inner(total, rows, "retain", "rectified")
    return measured.scalars | found
