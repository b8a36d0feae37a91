"""What a configuration asks of this machine: Hugging Face's arguments, passes and steps of a run."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from geffect.config import FinetuneConfig, TrainConfig, UnlearnConfig
from geffect.core.devices import VARIABLE, find_device
from geffect.core.forward import IGNORE_INDEX
from geffect.data.encode import EncodedExample
from geffect.errors import GeffectError
from geffect.io.system import check_launch_settings, rank_and_size
from geffect.measurement.passes import plan_passes
from geffect.objectives.base import Objective
from geffect.rectifiers.base import Rectifier

if TYPE_CHECKING:
    from transformers import TrainingArguments

NEVER = 10**9


def training_arguments(config: TrainConfig, steps: int) -> "TrainingArguments":
    """Hugging Face's training arguments for a run of so many steps; a fine-tuning is evaluated after each epoch.

    It refuses a warm-up longer than the run, and a setting that is unknown, needs a package that is not installed, or
    was given to the launcher.
    """
    from transformers import TrainingArguments

    device = find_device(config.device)
    check_launch_settings()
    _check_warm_up(config, steps)
    try:
        arguments = TrainingArguments(
            output_dir=str(config.out / "checkpoints"),
            max_steps=steps,
            per_device_train_batch_size=config.batch_size,
            per_device_eval_batch_size=max(8, config.batch_size),
            gradient_accumulation_steps=config.grad_accum_steps,
            learning_rate=config.learning_rate,
            optim=optimizer_name(config, device),
            lr_scheduler_type=_schedule(config),
            warmup_steps=config.warmup_steps,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            seed=config.seed,
            eval_strategy="steps",
            eval_steps=_evaluation_steps(config, steps),
            eval_on_start=True,
            save_strategy="steps" if isinstance(config, UnlearnConfig) or config.save_every else "no",
            save_steps=config.save_every or NEVER,
            logging_steps=1,
            report_to=config.report_to or "none",
            disable_tqdm=True,  # the trainer shows a bar of its own
            remove_unused_columns=False,
            # else processes on a CPU would not find one another
            use_cpu=rank_and_size()[1] > 1 and device.type == "cpu",
            **loader_settings(device),
            **_checkpointing(config),
        )
        take_device(arguments, device)
        _try_out(arguments, steps)
    except (ValueError, TypeError, RuntimeError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise GeffectError(f"Training cannot be set up: {reason}", remedy="Correct the setting") from error
    return arguments


def _check_warm_up(config: TrainConfig, steps: int) -> None:
    """The peak learning rate is reached within the run."""
    if config.warmup_steps > steps:
        message = f"The warm-up takes {config.warmup_steps} steps, more than the {steps} of the run"
        raise GeffectError(message, remedy=f"Lower --warmup-steps to {steps} or fewer, or train for longer")


def _try_out(arguments: "TrainingArguments", steps: int) -> None:
    """Make optimizer, schedule and trackers once for a parameter of one number: what is missing shows here."""
    from transformers import Trainer
    from transformers.integrations import get_reporting_integration_callbacks
    from transformers.optimization import get_scheduler

    if (schedule := arguments.lr_scheduler_type) in {"reduce_lr_on_plateau", "greedy"}:
        raise ValueError(f"{schedule}, which follows one evaluation loss where there are several sets")
    cls, settings = Trainer.get_optimizer_cls_and_kwargs(arguments)
    optimizer = cls([torch.nn.Parameter(torch.zeros(1))], **settings)
    get_scheduler(schedule, optimizer, arguments.warmup_steps, steps)
    for tracker in get_reporting_integration_callbacks(arguments.report_to):
        tracker()


def _checkpointing(config: TrainConfig) -> dict[str, object]:
    """Not reentrant: hooks move gradients, and two losses may share a forward."""
    from transformers import TrainingArguments

    if not config.gradient_checkpointing:
        return {}
    new = "activation_checkpointing" in TrainingArguments.__dataclass_fields__  # renamed within transformers 5
    name = "activation_checkpointing" if new else "gradient_checkpointing"
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}}


def _evaluation_steps(config: TrainConfig, steps: int) -> int:
    """Steps between two evaluations: an epoch of a fine-tuning."""
    if isinstance(config, UnlearnConfig):
        return config.evaluate_every
    return steps // config.epochs if isinstance(config, FinetuneConfig) else steps


def _schedule(config: TrainConfig) -> str:
    """Hugging Face's ``constant`` would pass over a warm-up in silence."""
    return "constant_with_warmup" if config.schedule == "constant" and config.warmup_steps else config.schedule


def num_finetune_steps(config: TrainConfig, num_examples: int) -> int:
    """Optimizer steps of a fine-tuning on so many examples, at most."""
    if isinstance(config, FinetuneConfig) and config.steps:
        return config.steps
    epochs = config.epochs if isinstance(config, FinetuneConfig) else 1
    micro_batches = -(-num_examples // config.batch_size)
    return epochs * -(-micro_batches // config.grad_accum_steps)


def passes(objective: Objective, rectifier: Rectifier, diagnose_every: int) -> str:
    """Forward and backward passes of a step with and without diagnosis, as a sentence.

    >>> from geffect.objectives.registry import make_objective
    >>> from geffect.rectifiers.registry import make_rectifier
    >>> passes(make_objective("ga"), make_rectifier("none"), 5)
    'forget 1 forward 1 backward; every 5 steps: forget 1 forward 1 backward, retain 1 forward 1 backward'
    """

    def count(*, measure: bool) -> str:
        plan = plan_passes(objective, rectifier, measure=measure)
        backwards = {
            "forget": bool(objective.on("forget")) + plan.runs_forget,
            "alternative": int(bool(objective.on("alternative"))),
            "general": int(bool(objective.on("general"))),
            "retain": plan.retain_terms + plan.runs_retain,
        }
        return ", ".join(f"{name} 1 forward {n} backward" for name, n in backwards.items() if n)

    measured = count(measure=True)
    return measured if diagnose_every == 1 else f"{count(measure=False)}; every {diagnose_every} steps: {measured}"


def parameter_counts(model: nn.Module) -> str:
    """How many parameters a model has, and how many of them are trained."""
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return f"{total / 1e6:.2f} M parameters, {trained / 1e6:.2f} M trained"


def token_counts(examples: Sequence[EncodedExample]) -> str:
    """How many examples and tokens a set has."""
    lengths = [len(example.input_ids) for example in examples]
    labeled = sum(lengths) - sum(example.labels.count(IGNORE_INDEX) for example in examples)
    cut = sum(example.cut > 0 for example in examples)
    shortened = f", {cut} cut at --max-length" if cut else ""
    return f"{len(examples)} examples, {sum(lengths)} tokens ({labeled} carry loss), longest {max(lengths)}{shortened}"


def optimizer_name(config: TrainConfig, device: torch.device) -> str:
    """The optimizer that runs: of the default one, on CUDA, the kernel that needs no temporary copies of the weights.

    That kernel takes no shards.
    """
    fuses = config.optimizer == "adamw_torch" and device.type == "cuda" and not getattr(config, "shard", False)
    return "adamw_torch_fused" if fuses else config.optimizer


def loader_settings(device: torch.device) -> dict[str, object]:
    """Batches go to CUDA from pinned memory, beside the host's work; other devices gain nothing by it."""
    if device.type != "cuda":
        return {"dataloader_pin_memory": False}
    return {"dataloader_pin_memory": True, "accelerator_config": {"non_blocking": True}}


def take_device(arguments: "TrainingArguments", device: torch.device) -> None:
    """Make a Trainer of these arguments use one device; else it takes the first, and DataParallel where it sees more.

    Of several launched processes each keeps the one that accelerate gives it.
    """
    from accelerate.state import AcceleratorState, PartialState

    if rank_and_size()[1] > 1 or "LOCAL_RANK" in os.environ:
        return
    AcceleratorState._reset_state(reset_partial_state=True)  # as the arguments do when they choose a device
    with _variable(VARIABLE, str(device)):
        arguments.distributed_state = PartialState()
    vars(arguments).update(_setup_devices=device, _n_gpu=int(device.type != "cpu"))  # what they have chosen
    if device.type == "cuda":
        torch.cuda.set_device(device)


@contextlib.contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    """Set an environment variable meanwhile."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before
