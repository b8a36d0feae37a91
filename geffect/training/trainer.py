"""What every trainer here shares: evaluation of named sets, whole-or-absent checkpoints, a line a step."""

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments

from geffect.core.distributed import local_part, rank, sum_over_processes, wait_for_all
from geffect.data.encode import EncodedExample, pad_id_of
from geffect.errors import GeffectError
from geffect.io.system import SIGNALS
from geffect.models.checkpoints import REMEDY, read_errors, write_checksums
from geffect.models.scoring import Likelihood, compute_likelihood
from geffect.record.writer import rename
from geffect.training.checkpoints import PARTIAL, check_whole, step_of, writing
from geffect.training.fsdp import ShardedTrainer
from geffect.training.interruption import deferred

Line = dict[str, Any]
ROW_DIGITS = 6  # decimals of a row's nats in a record


class _Steps(TrainerCallback):  # type: ignore[misc]
    """Tells the trainer when a step has been taken, and shows a bar on a terminal."""

    def __init__(self, trainer: "RecordingTrainer") -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The bar counts optimizer steps; off a terminal there is none."""
        self._bar = tqdm(
            total=state.max_steps, initial=state.global_step, unit="step", disable=True if rank() else None
        )

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """The optimizer has stepped; the learning rate has not moved yet."""
        self._trainer.after_update()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The learning rate has moved on."""
        self._trainer.finish_line()
        self._bar.update()
        received = sum_over_processes(torch.tensor([float(self._trainer.interrupted == each) for each in SIGNALS]))
        if float(received.max()):  # in any process, and now in all
            self._trainer.interrupted = int(SIGNALS[int(received.argmax())])
            control.should_training_stop = control.should_save = True

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """The last step and evaluation are over."""
        self._bar.close()
        self._trainer.finish_run()


def rows_of(batches: Sequence[Mapping[str, Tensor]]) -> str:
    """The rows of collated batches, for a message."""
    return ", ".join(str(i) for batch in batches for i in batch["index"].tolist())


def evaluated(model: nn.Module, sets: Mapping[str, list[EncodedExample]], pad_id: int, batch_size: int) -> Line:
    """What a record's line holds of an evaluation: each set's risk and token accuracy, and each row's.

    Args:
        model: the model.
        sets: name → encoded rows.
        pad_id: fills the batches.
        batch_size: rows at a time.

    Returns:
        ``evaluation`` and ``evaluation_examples``.
    """
    return evaluation_line({name: compute_likelihood(model, rows, pad_id, batch_size) for name, rows in sets.items()})


def evaluation_line(scores: Mapping[str, Likelihood]) -> Line:
    """What a record's line holds of the scores of named sets; ``diverged`` names those that are not finite."""
    diverged = [name for name, s in scores.items() if not math.isfinite(s.loss)]
    marks = {"diverged": f"no finite risk of {', '.join(diverged)}"} if diverged else {}
    return marks | {
        "evaluation": {name: {"loss": s.loss, "accuracy": s.accuracy} for name, s in scores.items()},
        "evaluation_examples": {
            name: {
                "nll": [round(each, ROW_DIGITS) for each in s.example_nll],
                "right": list(s.example_right),
                "tokens": list(s.example_tokens),
            }
            for name, s in scores.items()
        },
    }


class RecordingTrainer(ShardedTrainer):
    """What fitting and unlearning share: evaluation of named sets, checkpoints that are whole or absent, lines.

    Args:
        model: the model.
        args: Hugging Face's training arguments.
        tokenizer: the model's tokenizer, saved with every checkpoint.
        evaluation_sets: name → encoded rows, scored by `compute_likelihood` whenever the arguments ask for evaluation.
        sink: called with each step's line; step t is measured at θ^(t), before its update.
        **kwargs: passed on to `transformers.Trainer`.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        tokenizer: Any,
        evaluation_sets: dict[str, list[EncodedExample]],
        sink: Callable[[Line], None],
        **kwargs: Any,
    ) -> None:
        super().__init__(model, args, processing_class=tokenizer, eval_dataset=evaluation_sets, **kwargs)
        self.sink, self.evaluation_sets, self.pad_id = sink, evaluation_sets, pad_id_of(tokenizer)
        self.line: Line = {}
        self.control: Any
        self.clip_factor = 1.0
        self.interrupted = 0  # the signal that asked for the end
        self.diverged = ""
        self.started = time.perf_counter()
        self.remove_callback(PrinterCallback)
        self.add_callback(_Steps(self))

    def train(self, resume_from_checkpoint: Path | str | None = None, **kwargs: Any) -> Any:
        """As Hugging Face's. Ctrl-C, SIGTERM or SIGHUP stops it after its step, with a checkpoint; a second, at once.

        Args:
            resume_from_checkpoint: one of this run's; the model handed in is its start all the same.
            **kwargs: see `transformers.Trainer.train`.

        Returns:
            Hugging Face's summary; None where the checkpoint left nothing to do.

        Raises:
            GeffectError: another run's checkpoints lie here.
        """
        if rank() == 0:  # a checkpoint that was never whole
            shutil.rmtree(Path(self.args.output_dir) / PARTIAL, ignore_errors=True)
        wait_for_all()
        with deferred(self.interrupt):
            if resume_from_checkpoint is not None:
                self._take_up(Path(resume_from_checkpoint))
                if self.control.should_training_stop:
                    return self.finish_run()
                return super().train(str(resume_from_checkpoint), **kwargs)
            if any(Path(self.args.output_dir).glob("checkpoint-*")):
                remedy = "name another output_dir"
                raise GeffectError(f"no checkpoints yet in {self.args.output_dir}", "those of another run", remedy)
            return super().train(**kwargs)

    def _take_up(self, checkpoint: Path) -> None:
        """Its weights, what a subclass keeps, and the evaluation that belongs to the next step's line."""
        check_whole(checkpoint, self.model, self._state_files())
        with read_errors(f"checkpoint at {checkpoint}", REMEDY):
            self.state.global_step = TrainerState.load_from_json(str(checkpoint / "trainer_state.json")).global_step
            self._load_from_checkpoint(str(checkpoint))
            self._load_state(checkpoint)
        found, named = self.state.global_step, step_of(checkpoint)
        if found != named:
            raise GeffectError(
                f"the state of step {named} in {checkpoint}", f"that of step {found}", "restore its name"
            )
        self.args.eval_on_start = False
        over = self.state.global_step >= self.args.max_steps
        if over or self.state.global_step % self.args.eval_steps == 0:
            self.evaluate()
        self.control.should_training_stop |= over

    def interrupt(self, signum: int) -> None:
        """End after the step that runs, with a checkpoint."""
        self.interrupted = signum

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Risk and token accuracy of every evaluation set, for the record and the trackers."""
        found = evaluated(self.model, self.evaluation_sets, self.pad_id, self.args.per_device_eval_batch_size)
        self.line |= found
        scores = found["evaluation"]
        metrics = {
            f"{metric_key_prefix}_{name}_{kind}": scores[name][kind] for kind in ("loss", "accuracy") for name in scores
        }
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.started = time.perf_counter()
        return metrics

    def floating_point_ops(self, inputs: Any) -> int:
        """Not estimated: a step here is several passes over two batches."""
        return 0

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        norm = super()._clip_grad_norm(model)
        self.clip_factor = min(1.0, self.args.max_grad_norm / (float(norm) + 1e-6))
        return norm

    def after_update(self) -> None:
        """What a subclass does between the optimizer's step and the schedule's."""

    def finish_line(self) -> None:
        """Hand over the step's line."""
        step = self.state.global_step - 1
        timing = {"epoch": self.state.epoch, "seconds": time.perf_counter() - self.started}
        self.sink({"step": step} | self.line | {"clip": self.clip_factor} | timing)
        self.line, self.clip_factor, self.started = {}, 1.0, time.perf_counter()

    def finish_run(self) -> None:
        """Hand over the last evaluation, and whether the model came to its end finite."""
        self.diverged = self.line.get("diverged") or _not_finite(self.model)
        if self.diverged:
            self.line["diverged"] = self.diverged
        if "evaluation" in self.line:
            self.sink({"step": self.state.global_step} | self.line)

    def _get_output_dir(self, trial: Any) -> str:
        return str(Path(self.args.output_dir) / PARTIAL)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a temporary sibling, then rename: a checkpoint is whole or absent."""
        name = f"checkpoint-{self.state.global_step}"
        partial = Path(self._get_output_dir(trial)) / name
        try:
            with writing(partial):
                super()._save_checkpoint(model, trial)
                (partial / "training_args.bin").unlink(missing_ok=True)  # a pickle; config.yaml says the same
                self._save_state(partial)
                wait_for_all()
                if rank() == 0:
                    write_checksums(partial)
        except OSError:
            shutil.rmtree(partial.parent, ignore_errors=True)  # what room it took is free again
            raise
        if rank() == 0:
            rename(partial, Path(self.args.output_dir) / name)
            partial.parent.rmdir()
        wait_for_all()
        self.started = time.perf_counter()  # a step's seconds are its own

    def _save_state(self, directory: Path) -> None:
        """What a subclass keeps between steps goes into the checkpoint before it counts."""

    def _state_files(self) -> list[str]:
        """What `_save_state` is bound to have written."""
        return []

    def _load_state(self, directory: Path) -> None:
        """What `_save_state` wrote."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with read_errors(f"checkpoint at {checkpoint}", REMEDY):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Nothing here scales a loss, so that a file of this name is none of a run's own."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with read_errors(f"checkpoint at {checkpoint}", REMEDY):
            super()._load_rng_state(checkpoint)


@torch.no_grad()
def _not_finite(model: nn.Module) -> str:
    """What is not finite of the trained parameters in any process; empty where all are."""
    own = (bool(local_part(p).isfinite().all()) for p in model.parameters() if p.requires_grad)
    broken = float(sum_over_processes(torch.tensor(float(sum(not finite for finite in own)))))
    return f"{broken:.0f} parameters with values that are not finite" if broken else ""


def make_loader(trainer: Trainer, rows: Any, sampler: Any, collate_fn: Callable[[Any], Any]) -> DataLoader[Any]:
    """A loader prepared by the trainer's accelerator, its order the sampler's."""
    batch_size = trainer.args.per_device_train_batch_size
    loader = DataLoader(rows, batch_size, sampler=sampler, collate_fn=collate_fn)
    prepared: DataLoader[Any] = trainer.accelerator.prepare(loader)
    return prepared
