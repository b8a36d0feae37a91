"""`RecordingTrainer`, which unlearning and fine-tuning share, its signals, and the modes that a model trains in."""

import contextlib
import logging
import math
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.modeling_layers import GradientCheckpointingLayer

from geffect.core.architectures import Tokenizer
from geffect.core.distributed import local_part, map_leaves, rank, sum_over_processes, wait_for_all
from geffect.core.model_state import keep_weight_scale
from geffect.data.encode import EncodedExample, pad_id_of
from geffect.errors import GeffectError
from geffect.io.progress import Bar
from geffect.io.readers import JSON
from geffect.io.system import SIGNALS, install, rank_and_size
from geffect.models.checkpoints import REMEDY, checkpoint_step, read_errors, write_checksums
from geffect.models.scoring import Likelihood, compute_likelihood
from geffect.record.writer import rename
from geffect.training.checkpoints import PARTIAL, ShardedTrainer, check_whole, write_errors
from geffect.training.dry_run import take_device

if TYPE_CHECKING:
    from transformers.trainer_utils import TrainOutput

LOGGER = logging.getLogger(__name__)
Line = dict[str, JSON]
T = TypeVar("T")
NLL_DIGITS = 6  # decimals of an example's nats in a record
TWICE = 5.0  # seconds in which a launcher may pass on the signal that its processes have received themselves


class _Steps(TrainerCallback):  # type: ignore[misc]
    """Calls the trainer after each step, and shows a progress bar on a terminal."""

    def __init__(self, trainer: "RecordingTrainer") -> None:
        self._trainer, self._bar = trainer, Bar(0, "step", shown=False)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The bar counts optimizer steps; off a terminal there is none."""
        self._bar = Bar(state.max_steps, "step", done=state.global_step, shown=rank() == 0)

    def on_evaluate(self, *_: Any, **__: Any) -> None:
        """The sets have been scored."""
        self._bar.tell(self._trainer.live)

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """The optimizer has stepped; the learning rate has not moved yet."""
        self._trainer.after_update()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The learning rate has moved on."""
        self._trainer.finish_line()
        self._bar.tell(self._trainer.live, steps=1)
        received = sum_over_processes(torch.tensor([float(self._trainer.interrupted == each) for each in SIGNALS]))
        if float(received.max()):  # in any process, and now in all
            self._trainer.interrupted = int(SIGNALS[int(received.argmax())])
            control.should_training_stop = control.should_save = True

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """The last step and evaluation are over."""
        self._bar.close()
        self._trainer.finish_run()


def example_numbers(batches: Sequence[Mapping[str, Tensor]]) -> str:
    """The numbers of the examples in collated batches, for a message."""
    return ", ".join(str(i) for batch in batches for i in batch["index"].tolist())


def evaluate_sets(model: nn.Module, sets: Mapping[str, list[EncodedExample]], pad_id: int, batch_size: int) -> Line:
    """What a record's line holds of an evaluation: each set's loss and token accuracy, and each example's."""
    return evaluation_line({name: compute_likelihood(model, each, pad_id, batch_size) for name, each in sets.items()})


def evaluation_line(scores: Mapping[str, Likelihood]) -> Line:
    """What a record's line holds of the scores of named sets; ``diverged`` names those whose loss is not finite."""
    diverged = [name for name, s in scores.items() if not math.isfinite(s.loss)]
    marks = {"diverged": f"no finite loss of {', '.join(diverged)}"} if diverged else {}
    return marks | {
        "evaluation": {name: {"loss": s.loss, "accuracy": s.accuracy} for name, s in scores.items()},
        "evaluation_examples": {
            name: {
                "nll": [round(each, NLL_DIGITS) for each in s.example_nll],
                "right": list(s.example_right),
                "tokens": list(s.example_tokens),
            }
            for name, s in scores.items()
        },
    }


class RecordingTrainer(ShardedTrainer):
    """A Trainer that evaluates named sets, writes checkpoints that are whole or absent, and records a line a step.

    The tokenizer is saved with every checkpoint; the sets are scored whenever the arguments ask for evaluation; the
    sink receives each step's line, which is measured at θ^(t), before the update of step t.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        tokenizer: Tokenizer,
        evaluation_sets: dict[str, list[EncodedExample]],
        sink: Callable[[Line], None],
        **kwargs: Any,
    ) -> None:
        take_device(args, args.device)  # another training may have taken one since
        super().__init__(model, args, processing_class=tokenizer, eval_dataset=evaluation_sets, **kwargs)
        self.sink, self.evaluation_sets, self.pad_id = sink, evaluation_sets, pad_id_of(tokenizer)
        self.line: Line = {}
        self.live: dict[str, float | str | None] = {}  # numbers for the progress bar
        self.control: Any
        self.clip_factor = 1.0
        self.interrupted = 0  # the signal that asked for the end
        self.diverged = ""
        self.started = time.perf_counter()
        self.remove_callback(PrinterCallback)
        self.add_callback(_Steps(self))

    def train(self, resume_from_checkpoint: Path | str | None = None, **kwargs: Any) -> "TrainOutput | None":
        """As Hugging Face's; None where the checkpoint to resume from, one of this run's own, left nothing to do.

        Ctrl-C, SIGTERM or SIGHUP stops it after its step, with a checkpoint; a second signal stops it at once. The
        model is the run's start also where a checkpoint is resumed from.
        """
        if rank() == 0:  # a checkpoint that was never whole
            shutil.rmtree(Path(self.args.output_dir) / PARTIAL, ignore_errors=True)
        wait_for_all()
        with defer_signals(self.interrupt):
            if resume_from_checkpoint is not None:
                self._restore(Path(resume_from_checkpoint))
                if self.control.should_training_stop:
                    self.finish_run()
                    return None
                return super().train(str(resume_from_checkpoint), **kwargs)
            if any(Path(self.args.output_dir).glob("checkpoint-*")):
                message = f"{self.args.output_dir} holds checkpoints of another run"
                raise GeffectError(message, remedy="Name another output_dir")
            return super().train(**kwargs)

    def _restore(self, checkpoint: Path) -> None:
        """Load its weights and what a subclass keeps, and make the evaluation that belongs to the next step's line."""
        check_whole(checkpoint, self.model, self.memory_files())
        with read_errors(f"checkpoint at {checkpoint}", REMEDY):
            self.state.global_step = TrainerState.load_from_json(str(checkpoint / "trainer_state.json")).global_step
            self._load_from_checkpoint(str(checkpoint))
            self.load_memory(checkpoint)
        step = self.state.global_step
        if step != checkpoint_step(checkpoint):
            raise GeffectError(f"{checkpoint} holds the state of step {step}", remedy="Restore its name")
        self.args.eval_on_start = False
        over = step >= self.args.max_steps
        if over or step % self.args.eval_steps == 0:
            self.evaluate()
        self.control.should_training_stop |= over

    def interrupt(self, signum: int) -> None:
        """End after the step that runs, with a checkpoint."""
        self.interrupted = signum

    def evaluate(
        self, eval_dataset: object = None, ignore_keys: object = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss and token accuracy of every evaluation set, for the record and the trackers."""
        self.line |= evaluate_sets(self.model, self.evaluation_sets, self.pad_id, self.args.per_device_eval_batch_size)
        scores = self.line["evaluation"]
        metrics = {
            f"{metric_key_prefix}_{name}_{kind}": scores[name][kind] for kind in ("loss", "accuracy") for name in scores
        }
        self.log(dict(metrics))
        self.live |= self.live_scores(scores)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.started = time.perf_counter()
        return metrics

    def live_scores(self, scores: Mapping[str, Any]) -> dict[str, float | str | None]:
        """What the progress bar shows of an evaluation."""
        return {}

    def on_device(self, batch: T) -> T:
        """A batch, or one a set, on the model's device."""
        moved: T = map_leaves(
            batch, lambda leaf: leaf.to(self.args.device, non_blocking=True) if isinstance(leaf, Tensor) else leaf
        )
        return moved

    def floating_point_ops(self, inputs: object) -> int:
        """0: not estimated, since a step is several passes over two batches."""
        return 0

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm = super()._clip_grad_norm(model)
        self.clip_factor = min(1.0, self.args.max_grad_norm / (float(norm) + 1e-6))
        return norm

    def after_update(self) -> None:
        """What a subclass does between the optimizer's step and the schedule's."""

    def finish_line(self) -> None:
        """Write the step's line."""
        step = self.state.global_step - 1
        timing = {"epoch": self.state.epoch, "seconds": time.perf_counter() - self.started}
        self.sink({"step": step} | self.line | {"clip": self.clip_factor} | timing)
        self.line, self.clip_factor, self.started = {}, 1.0, time.perf_counter()

    def finish_run(self) -> None:
        """Write the last evaluation, and whether the trained model is finite."""
        self.diverged = self.line.get("diverged") or _divergence(self.model)
        if self.diverged:
            self.line["diverged"] = self.diverged
        if "evaluation" in self.line:
            self.sink({"step": self.state.global_step} | self.line)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a temporary sibling, then rename: a checkpoint is whole or absent."""
        home, name = Path(self.args.output_dir), f"checkpoint-{self.state.global_step}"
        partial = home / PARTIAL / name
        try:
            self.args.output_dir = str(partial.parent)
            with write_errors(partial):
                super()._save_checkpoint(model, trial)
                (partial / "training_args.bin").unlink(missing_ok=True)  # a pickle; config.yaml says the same
                self.save_memory(partial)
                wait_for_all()
                if rank() == 0:
                    write_checksums(partial)
        except OSError:
            shutil.rmtree(partial.parent, ignore_errors=True)  # frees the disk
            raise
        finally:
            self.args.output_dir = str(home)
        if rank() == 0:
            rename(partial, home / name)
            partial.parent.rmdir()
        wait_for_all()
        self.started = time.perf_counter()  # a step's seconds are its own

    def save_memory(self, directory: Path) -> None:
        """Write what a subclass keeps between steps into a checkpoint."""

    def memory_files(self) -> list[str]:
        """The files that `save_memory` always writes."""
        return []

    def load_memory(self, directory: Path) -> None:
        """Read what `save_memory` wrote."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with read_errors(f"checkpoint at {checkpoint}", REMEDY):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Nothing here scales a loss, so that a file of this name is none of a run's own."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with read_errors(f"checkpoint at {checkpoint}", REMEDY):
            super()._load_rng_state(checkpoint)


@torch.no_grad()
def _divergence(model: nn.Module) -> str:
    """How many trained parameters of all processes are not finite, as a sentence; empty where all are."""
    finite = (bool(local_part(p).isfinite().all()) for p in model.parameters() if p.requires_grad)
    broken = float(sum_over_processes(torch.tensor(float(sum(not each for each in finite)))))
    return f"{broken:.0f} parameters with values that are not finite" if broken else ""


def make_loader(trainer: Trainer, sampler: Sampler[Any], collate_fn: Callable[[Any], Any]) -> DataLoader[Any]:
    """A loader of the training examples prepared by the trainer's accelerator, its order the sampler's."""
    batch_size = trainer.args.per_device_train_batch_size
    pins = trainer.args.dataloader_pin_memory
    loader = DataLoader(trainer.train_dataset, batch_size, sampler=sampler, collate_fn=collate_fn, pin_memory=pins)
    prepared: DataLoader[Any] = trainer.accelerator.prepare(loader, device_placement=[False])  # counted on the host
    return prepared


@contextlib.contextmanager
def defer_signals(tell: Callable[[int], None]) -> Iterator[None]:
    """The first Ctrl-C, SIGTERM or SIGHUP only calls ``tell`` with its number; a second one does what it did before.

    Where `geffect.io.system.install` changes nothing, neither does this. The handlers are put back at the end.
    """
    with contextlib.ExitStack() as installed:
        began: list[float] = []

        def first(signum: int, _: Any) -> None:
            if not began:
                began.append(time.monotonic())
                LOGGER.warning("stopping after this step; a second Ctrl-C or signal stops at once")
                tell(signum)
                if rank_and_size()[1] == 1:
                    installed.close()
            elif time.monotonic() - began[0] > TWICE:
                installed.close()
                signal.raise_signal(signum)

        for signum in SIGNALS:
            install(installed, signum, first)
        yield


def set_mode(model: nn.Module, *, dropout: bool, checkpointing: bool = True) -> None:
    """Training mode with dropout, or evaluation mode in which gradient checkpointing still works.

    Transformers checkpoints a block only while that block itself is in training mode. So, without dropout, blocks are
    put into it and their parts are not; a dropout probability a block holds itself is then zero.
    ``checkpointing`` lets blocks recompute their activations; leave it out where the model returns to dropout after.
    """
    model.train(dropout)
    keep_weight_scale(model)
    if dropout or not checkpointing:
        return
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
            module.training = True
            for name in [name for name, value in vars(module).items() if "drop" in name and isinstance(value, float)]:
                setattr(module, name, 0.0)
