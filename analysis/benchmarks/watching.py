"""The overhead of watching a training: plain against watched, in seconds and in peak memory.

Two trainings: ``lora``, TRL's SFTTrainer with an adapter and packed rows, and ``full``, all weights by
``transformers.Trainer``. Each is watched in turn by `geffect.Callback` with 1, 2 and 4 targets of eight examples, by
``wandb.watch`` (histograms of gradients) and by bergson's ``GradientCollectorCallback`` (projected gradients of every
trained example, at every step). The last two are optional: one that is not installed is skipped with a line of log.
Their work is another one; they stand here because people run them beside a training.

``python -m analysis.benchmarks.watching TRAINING WATCHER MODEL ROWS TOKENS`` measures the peak memory of one training
in its process.
"""

import argparse
import copy
import gc
import importlib
import importlib.metadata
import itertools
import json
import logging
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, default_data_collator

from analysis.benchmarks.memory import watched, watched_on
from analysis.benchmarks.peers import is_installed
from analysis.benchmarks.table import NOT_INSTALLED, TRAININGS, WATCHERS, Finding
from analysis.benchmarks.timing import Seconds, StandardErrors, clock, synchronize
from geffect.api import load_model
from geffect.data.load import load_set
from geffect.models.load import Loaded
from geffect.monitoring.callback import Callback

LOGGER = logging.getLogger("geffect.analysis")
PLAIN = "plain"
EVERY = 10  # steps of which one is measured
EXAMPLES = 8  # of a target
TARGETS = {
    "general": "builtin:general",
    "authors": "builtin:authors/retain",
    "works": "builtin:domains/copyright/retention",
    "people": "builtin:domains/privacy/retention",
}
TRAINED = ("builtin:authors/forget", "builtin:authors/heldout")
MEMORY_STEPS = 2  # each measured: the optimizer's state is there from the first one's end on
SETTINGS: dict[str, Any] = {
    "learning_rate": 1e-5,
    "report_to": "none",
    "save_strategy": "no",
    "logging_strategy": "no",
    "bf16": False,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "dataloader_drop_last": True,
}


@dataclass(frozen=True)
class Shape:
    """How long a training is.

    Attributes:
        steps: of the optimizer.
        rows: of a batch.
        tokens: of a row, all of them labeled.
        every: steps of which one is measured.
    """

    steps: int = 20
    rows: int = 8
    tokens: int = 128
    every: int = EVERY

    @property
    def measured(self) -> int:
        """How many steps are measured: the first, and then each ``every``-th."""
        return -(-self.steps // self.every)

    @property
    def told(self) -> str:
        """The shape in words."""
        return f"{self.steps} steps of {self.rows} rows of {self.tokens} tokens, each {self.every}th measured"


class LogStep(TrainerCallback):  # type: ignore[misc]
    """Commits what ``wandb.watch`` has gathered, as a Trainer's own log would.

    Args:
        run: wandb's.
        every: so many steps.
    """

    def __init__(self, run: Any, every: int) -> None:
        self.run, self.every = run, every

    def on_step_end(self, args: object, state: Any, control: object, **_: object) -> None:
        """Log the number of steps that are done."""
        if state.global_step % self.every == 0:
            self.run.log({"steps": state.global_step})


def make_trainer(training: str, loaded: Loaded, shape: Shape, folder: Path) -> Any:
    """A Trainer of a copy of the model, ready to train.

    Args:
        training: a key of `TRAININGS`.
        loaded: model and tokenizer.
        shape: of the training.
        folder: where it may write.

    Returns:
        The Trainer.
    """
    from datasets import Dataset

    model, end = copy.deepcopy(loaded.model), loaded.tokenizer.eos_token_id
    texts = [f"Question: {each['question']}\nAnswer: {each['answer']}" for name in TRAINED for each in load_set(name)]
    encoded = [[*loaded.tokenizer(text)["input_ids"], end] for text in texts]
    settings = SETTINGS | {"max_steps": shape.steps, "per_device_train_batch_size": shape.rows}
    if training == "lora":
        from peft import LoraConfig
        from trl import SFTConfig, SFTTrainer

        packing = {
            "packing": True,
            "packing_strategy": "wrapped",
            "max_length": shape.tokens,
        }  # padded rows: any device
        return SFTTrainer(
            model,
            args=SFTConfig(str(folder), gradient_checkpointing=False, **packing, **settings),
            train_dataset=Dataset.from_list([{"input_ids": ids} for ids in encoded]),
            processing_class=loaded.tokenizer,
            peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
        )
    stream = list(itertools.chain(*encoded))
    starts = range(0, len(stream) - shape.tokens + 1, shape.tokens)
    rows = [stream[start : start + shape.tokens] for start in starts]
    return Trainer(
        model,
        TrainingArguments(str(folder), **settings),
        train_dataset=Dataset.from_list([{"input_ids": ids, "labels": ids} for ids in rows]),
        data_collator=default_data_collator,
        processing_class=loaded.tokenizer,
    )


@contextmanager
def watch(watcher: str, trainer: Any, every: int, folder: Path) -> Iterator[Callback | None]:
    """Have a training watched while a block runs.

    Args:
        watcher: a key of `WATCHERS`, or `PLAIN`.
        trainer: not trained yet.
        every: steps of which one is measured; bergson looks at all.
        folder: where files go.

    Yields:
        This toolkit's callback, where that watches.
    """
    callback = None
    if watcher == "wandb":
        wandb: Any = importlib.import_module("wandb")
        run = wandb.init(mode="offline", dir=folder, settings=wandb.Settings(silent=True, console="off"))
        run.watch(trainer.model, log="gradients", log_freq=every)
        trainer.add_callback(LogStep(run, every))
        try:
            yield None
        finally:
            run.unwatch(trainer.model)
            run.finish()
        return
    if watcher == "bergson":
        bergson: Any = importlib.import_module("bergson.huggingface")
        trainer.add_callback(bergson.GradientCollectorCallback(folder / "gradients"))
        bergson.prepare_for_gradient_collection(trainer)
    elif watcher != PLAIN:
        targets = dict(itertools.islice(TARGETS.items(), int(watcher)))
        callback = Callback(targets, every=every, examples=EXAMPLES)
        trainer.add_callback(callback)
    yield callback


def train(training: str, watcher: str, loaded: Loaded, shape: Shape) -> tuple[float, int]:
    """Train once.

    Args:
        training: a key of `TRAININGS`.
        watcher: a key of `WATCHERS`, or `PLAIN`.
        loaded: model and tokenizer, which stay as they are.
        shape: of the training.

    Returns:
        Seconds of ``Trainer.train()`` by `analysis.benchmarks.timing.clock`, in which this toolkit reads its sets and
        scores the final weights too; and tokens of all targets.
    """
    _, now = clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(training, loaded, shape, Path(folder))
        trainer.remove_callback(PrinterCallback)
        with watch(watcher, trainer, shape.every, Path(folder)) as callback:
            gc.collect()
            synchronize()
            began = now()
            trainer.train()
            synchronize()
            took = now() - began
        monitor = callback and callback.monitor
        targets = monitor.targets.values() if monitor else ()
        tokens = sum(len(example.input_ids) for target in targets for example in target.examples)
    LOGGER.info("%s, %s: %.3f s", training, watcher, took)
    return took, tokens


def measure(training: str, watcher: str, spec: str, shape: Shape) -> dict[str, int]:
    """Two steps in this process, both measured.

    Args:
        training: a key of `TRAININGS`.
        watcher: a key of `WATCHERS`, or `PLAIN`.
        spec: of a model.
        shape: of the training, but for its steps.

    Returns:
        Bytes: resident once the Trainer is made (``loaded``), and at the ``peak``.
    """
    short = replace(shape, steps=MEMORY_STEPS, every=1)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(training, load_model(spec), short, Path(folder))
        with watch(watcher, trainer, short.every, Path(folder)):
            gc.collect()
            device = trainer.model.device
            with watched_on(device) if device.type == "cuda" else watched() as seen:
                trainer.train()
    return {"loaded": seen[0], "peak": seen[1]}


def measure_alone(training: str, watcher: str, spec: str, shape: Shape) -> dict[str, int]:
    """`measure` in a process of its own."""
    command = [sys.executable, "-m", "analysis.benchmarks.watching", training, watcher, spec]
    command += [str(shape.rows), str(shape.tokens)]
    ended = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(ended.stdout.splitlines()[-1]))


def ratio_of_medians(values: Seconds, name: str, against: str) -> StandardErrors:
    """The median of one variant divided by the median of another, with the range of the ratios of pairs.

    Args:
        values: name → one a repeat.
        name: of the variant.
        against: what it is divided by.

    Returns:
        The ratio and its range.

    >>> ratio_of_medians({"a": [2.0, 3.0, 9.0], "b": [1.0, 2.0, 3.0]}, "a", "b")
    StandardErrors(median=1.5, low=1.5, high=3.0, repeats=3)
    """
    pairs = [a / b for a, b in zip(values[name], values[against], strict=True)]
    whole = statistics.median(values[name]) / statistics.median(values[against])
    return StandardErrors(whole, min(pairs), max(pairs), len(pairs))


def watchers() -> list[str]:
    """The watchers that can be imported; of each other one a line of log says that it is skipped."""
    absent = [name for name in ("wandb", "bergson") if not is_installed(name)]
    for name in absent:
        LOGGER.warning("%s is %s, and is skipped", name, NOT_INSTALLED)
    return [name for name in WATCHERS if name not in absent]


def benchmark(
    training: str, spec: str, repeats: int, shape: Shape, memory_repeats: int = 1
) -> tuple[list[Finding], Seconds]:
    """Train plain and watched in turn, another one first in each repeat; then measure memory, a process each.

    Args:
        training: a key of `TRAININGS`.
        spec: of a model.
        repeats: pairs of a plain and a watched training, for every watcher; the plain one of a repeat is shared.
        shape: of every training.
        memory_repeats: processes of each.

    Returns:
        The findings, and the seconds and bytes above the loaded model that they were made of.
    """
    loaded, names = load_model(spec), [PLAIN, *watchers()]
    train(training, PLAIN, loaded, replace(shape, steps=1))  # what is imported or compiled once
    seconds, above, whole = ({name: list[float]() for name in names} for _ in range(3))
    tokens = dict.fromkeys(names, 0)
    for repeat in range(repeats):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            took, tokens[name] = train(training, name, loaded, shape)
            seconds[name].append(took)
    for _ in range(memory_repeats):
        for name in names:
            told = measure_alone(training, name, spec, shape)
            above[name].append(told["peak"] - told["loaded"])
            whole[name].append(told["peak"])
    found: list[Finding] = []
    for name in names[1:]:
        slower = ratio_of_medians(seconds, name, PLAIN)
        note = f"{shape.told}; {_describe(name, slower.median, shape, tokens[name])}"
        found.append(Finding(f"watch {training} {name}", spec, slower, note=note))
        extra = statistics.median(whole[name]) - statistics.median(whole[PLAIN])
        peak = ratio_of_medians(whole, name, PLAIN).median
        note = f"{MEMORY_STEPS} steps, both measured; of the whole process {peak:.2f} ×, {extra / 1e6:+.0f} MB"
        ratio = ratio_of_medians(above, name, PLAIN)
        found.append(Finding(f"watch memory {training} {name}", spec, ratio, note=note))
    return found, seconds | {f"{name}, bytes above the model": each for name, each in above.items()}


def _describe(watcher: str, slower: float, shape: Shape, tokens: int) -> str:
    """What a watcher did; of targets, what a token of theirs costs in tokens that are trained on."""
    if watcher in ("wandb", "bergson"):
        return f"{watcher} {importlib.metadata.version(watcher)}; its other processes' seconds are not counted"
    trained, looked = shape.steps * shape.rows * shape.tokens, shape.measured * tokens
    price = (slower - 1) * trained / looked if looked else float("nan")
    return f"{tokens} tokens of targets at each, {price:.2f} tokens of training a token, final scores included"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Peak memory of one training, in this process.")
    parser.add_argument("training", metavar="TRAINING", choices=TRAININGS, help=", ".join(TRAININGS))
    parser.add_argument("watcher", metavar="WATCHER", choices=[PLAIN, *WATCHERS], help=", ".join([PLAIN, *WATCHERS]))
    parser.add_argument("model", metavar="MODEL", help="a model's name")
    parser.add_argument("rows", metavar="ROWS", type=int, help="rows of a batch")
    parser.add_argument("tokens", metavar="TOKENS", type=int, help="tokens of a row")
    chosen = parser.parse_args()
    asked = Shape(rows=chosen.rows, tokens=chosen.tokens)
    print(json.dumps(measure(chosen.training, chosen.watcher, chosen.model, asked)))
