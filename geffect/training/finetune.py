"""A Hugging Face Trainer that descends the NLL of its examples."""

import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from geffect.config import FinetuneConfig
from geffect.core.forward import forward
from geffect.core.layers import trainable_parameters
from geffect.core.masks import GradientMask
from geffect.data.encode import EncodedExample, collate
from geffect.errors import GeffectError
from geffect.measurement.measurement import Batch
from geffect.models.scoring import check_trainable
from geffect.objectives.base import Counts, mean_nll
from geffect.training.batches import ShuffledSampler
from geffect.training.trainer import RecordingTrainer, example_numbers, make_loader, set_mode


class FinetuneTrainer(RecordingTrainer):
    """Descends the token-mean NLL of its examples; each loss is divided by the count of the whole window.

    It stops after an evaluation in which every set reaches the token accuracy ``config.until_accuracy``. The model as
    it is after each number of steps in ``states`` is written to a directory of its own (`state_path`). Entries that
    are ``frozen`` keep every bit, whatever the optimizer does: each step puts them back.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        config: FinetuneConfig,
        examples: list[EncodedExample],
        states: Collection[int] = (),
        frozen: GradientMask | None = None,
        **kwargs: Any,
    ) -> None:
        check_trainable(model)
        super().__init__(model, args, train_dataset=examples, **kwargs)
        self.config, self.states = config, states
        self.counts, self.met = Counts(0, 0), ""  # of the current window
        self.frozen = frozen
        self.trained = trainable_parameters(model) if frozen else {}
        self.start = {name: parameter.detach().clone() for name, parameter in self.trained.items()}

    def get_train_dataloader(self) -> DataLoader[Batch]:
        """Batches of examples in an order that depends on seed and epoch alone."""
        sampler = ShuffledSampler(len(self.train_dataset), self.args.seed)
        return make_loader(self, sampler, lambda examples: collate(examples, self.pad_id))

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], None]:
        """The micro-batches of a window and the count all of them are divided by."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.counts, self.met = Counts.of(batches), example_numbers(batches)
        return batches, None

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch: object = None) -> Tensor:
        """Back-propagate one micro-batch's share of the window's loss."""
        # without dropout, the recorded loss is the whole model's
        set_mode(model, dropout=self.config.keep_dropout)
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.config.autocasts):
            loss = mean_nll(forward(model, self.on_device(inputs)), self.counts)
        self.accelerator.backward(loss)
        if self.frozen and self.accelerator.sync_gradients:
            for name, parameter in self.trained.items():
                parameter.grad = self.frozen.apply("forget", name, parameter.grad)
        value = float(loss.detach())
        if not math.isfinite(value):
            where = f"{value} in step {self.state.global_step}, examples {self.met} of the sets in their order"
            raise GeffectError(f"The loss is {where}", remedy="Lower --learning-rate, and look at those examples")
        self.line["loss_train"] = self.line.get("loss_train", 0.0) + value
        self.line["lr"] = [group["lr"] for group in self.optimizer.param_groups]
        return loss.detach()

    def finish_line(self) -> None:
        """As `RecordingTrainer.finish_line`; writes the model where its state is asked for."""
        self.live["loss"] = self.line.get("loss_train")
        super().finish_line()
        if self.state.global_step in self.states:
            path = state_path(self.config.out, self.state.global_step)
            self.model.save_pretrained(path)
            self.processing_class.save_pretrained(path)

    @torch.no_grad()
    def after_update(self) -> None:
        """Put back what weight decay did to frozen entries."""
        if self.frozen:
            for name, parameter in self.trained.items():
                self.frozen.put_back(name, parameter, self.start[name].to(parameter.device))

    def live_scores(self, scores: Mapping[str, Any]) -> dict[str, float | str | None]:
        """The least token accuracy of its sets, which ``until_accuracy`` is about."""
        return {"loss": self.live.get("loss"), "accuracy": min(each["accuracy"] for each in scores.values())}

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As `RecordingTrainer.evaluate`; asks for the end once every set is known."""
        metrics = super().evaluate(*args, **kwargs)
        accuracies = [value for name, value in metrics.items() if name.endswith("_accuracy")]
        until = self.config.until_accuracy
        known = min(accuracies) >= until
        if known and self.state.global_step == 0:  # told to stop here, Hugging Face's loop would still take a step
            message = f"The model already has an accuracy of {min(accuracies):.3f}, at least --until-accuracy {until}"
            raise GeffectError(message, remedy="Raise --until-accuracy, or use the model as it is")
        self.control.should_training_stop |= known
        return metrics


def state_path(run: Path, step: int) -> Path:
    """The directory, in a run's, of the model as it was after so many steps."""
    return run / f"state-{step}"
