"""A configuration as Hugging Face's training arguments, and a check that this machine can carry them out."""

from typing import TYPE_CHECKING, Any

from geffect.config import FinetuneConfig, TrainConfig, UnlearnConfig
from geffect.errors import GeffectError
from geffect.io.system import check_launch_settings, rank_and_size

if TYPE_CHECKING:
    from transformers import TrainingArguments

NEVER = 10**9


def training_arguments(config: TrainConfig, steps: int) -> "TrainingArguments":
    """Hugging Face's training arguments for a run of so many steps; a fine-tuning is evaluated after each epoch.

    It refuses a warm-up longer than the run, and a setting that is unknown, needs a package that is not installed, or
    was given to the launcher.
    """
    from torch.cuda import is_available
    from transformers import TrainingArguments

    check_launch_settings()
    _check_warm_up(config, steps)
    unlearning = isinstance(config, UnlearnConfig)
    try:
        arguments = TrainingArguments(
            output_dir=str(config.out / "checkpoints"),
            max_steps=steps,
            per_device_train_batch_size=config.batch_size,
            per_device_eval_batch_size=max(8, config.batch_size),
            gradient_accumulation_steps=config.grad_accum_steps,
            learning_rate=config.learning_rate,
            optim=config.optimizer,
            lr_scheduler_type=_schedule(config),
            warmup_steps=config.warmup_steps,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            seed=config.seed,
            eval_strategy="steps",
            eval_steps=config.evaluate_every if isinstance(config, UnlearnConfig) else _an_epoch(config, steps),
            eval_on_start=True,
            save_strategy="steps" if unlearning or config.save_every else "no",
            save_steps=config.save_every or NEVER,
            logging_steps=1,
            report_to=config.report_to or "none",
            disable_tqdm=True,  # the trainer shows a bar of its own
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            use_cpu=rank_and_size()[1] > 1 and not is_available(),  # else processes on a CPU would not find one another
            **_checkpointing(config),
        )
        _try_out(arguments, steps)
    except (ValueError, TypeError, RuntimeError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise GeffectError(f"Training cannot be set up: {reason}", remedy="Correct the setting") from error
    return arguments


def _check_warm_up(config: TrainConfig, steps: int) -> None:
    """The peak learning rate is reached within the run."""
    if config.warmup_steps > steps:
        raise GeffectError(
            f"The warm-up takes {config.warmup_steps} steps, more than the {steps} of the run",
            remedy=f"Lower --warmup-steps to {steps} or fewer, or train for longer",
        )


def _try_out(arguments: "TrainingArguments", steps: int) -> None:
    """Make optimizer, schedule and trackers once for a parameter of one number: what is missing shows here."""
    import torch
    from transformers import Trainer
    from transformers.integrations import get_reporting_integration_callbacks
    from transformers.optimization import get_scheduler

    if arguments.lr_scheduler_type in {"reduce_lr_on_plateau", "greedy"}:
        raise ValueError(
            f"{arguments.lr_scheduler_type}, which follows one evaluation loss where there are several sets"
        )
    cls, settings = Trainer.get_optimizer_cls_and_kwargs(arguments)
    optimizer = cls([torch.nn.Parameter(torch.zeros(1))], **settings)
    get_scheduler(arguments.lr_scheduler_type, optimizer, arguments.warmup_steps, steps)
    for tracker in get_reporting_integration_callbacks(arguments.report_to):
        tracker()


def _checkpointing(config: TrainConfig) -> dict[str, Any]:
    """Not reentrant: rows are moved by hooks, and two losses may share a forward."""
    from transformers import TrainingArguments

    if not config.gradient_checkpointing:
        return {}
    new = "activation_checkpointing" in TrainingArguments.__dataclass_fields__  # renamed within transformers 5
    name = "activation_checkpointing" if new else "gradient_checkpointing"
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}}


def _an_epoch(config: TrainConfig, steps: int) -> int:
    return steps // config.epochs if isinstance(config, FinetuneConfig) else steps


def _schedule(config: TrainConfig) -> str:
    """Hugging Face's ``constant`` would pass over a warm-up in silence."""
    return "constant_with_warmup" if config.schedule == "constant" and config.warmup_steps else config.schedule
