"""Draw ``figures/trainings/``: five trainings of SmolLM2-135M, and what each of their steps did to named sets.

    python -m analysis.trainings DATA [RUNS] [--only NAME] [--steps 20]

DATA holds ``tofu/`` and ``knowundo/``. The trainings are of kinds that people run:

- ``sft``: TRL's SFTTrainer, LoRA, teaches the model to refuse questions about private people;
- ``protect``: the same, while general questions and world facts are protected;
- ``dpo``: TRL's DPOTrainer, LoRA: right answers about authors are chosen, wrong ones rejected;
- ``mixture``: full fine-tuning with Hugging Face's Trainer on two tasks at once, authors and private people;
- ``unlearning``: ``geffect unlearn`` of one task after the mixture, NPO rectified by GRU.

Every step is measured, on 8 examples of each target, so that each record checks itself: a target's measured change
between two steps against what −⟨∇R, update⟩ says. Small models are not large ones: these are examples of use.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

import geffect
from geffect.core.effects import r_squared
from geffect.data.load import QASet
from geffect.data.relabel import REFUSALS
from geffect.reports import plots
from geffect.reports.plots.registry import draw_all, find_plot

OUT = Path("figures/trainings")
EXAMPLES = 8  # of a target
LORA = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"}
PRIVATE = "knowundo:privacy/unlearn/train"


class Study:
    """The sets, the model and the places of the five trainings."""

    def __init__(self, data: Path, runs: Path, steps: int) -> None:
        self.data, self.runs, self.steps = data, runs, steps

    def rows(self, name: str, count: int = 64) -> list[dict[str, Any]]:
        """The first rows of a set, evenly spaced over it."""
        examples = geffect.load_set(name, data_dir=self.data).examples
        return [dict(examples[i * len(examples) // count]) for i in range(min(count, len(examples)))]

    def qa(self, name: str, count: int = EXAMPLES) -> list[dict[str, Any]]:
        """Questions and answers alone."""
        return [{key: row[key] for key in QASet.FIELDS} for row in self.rows(name, count)]

    def watched(self) -> dict[str, list[dict[str, Any]]]:
        """The targets that no training here is about."""
        return {"general": self.qa("builtin:general"), "world_facts": self.qa("tofu:world_facts")}

    def refusals(self) -> list[dict[str, Any]]:
        """Questions about private people, each with a refusal."""
        asked = self.qa(PRIVATE, 64)
        return [row | {"answer": REFUSALS[i % len(REFUSALS)]} for i, row in enumerate(asked)]

    def sft(self, *, protect: tuple[str, ...] = (), name: str = "sft") -> geffect.Run:
        """Supervised fine-tuning on refusals; where targets are protected, by GRU in both spaces."""
        from trl import SFTConfig, SFTTrainer

        loaded, refusals = geffect.load_model("smollm2"), self.refusals()
        examples = geffect.encode_set(loaded.tokenizer, QASet("refusals", tuple(refusals)))
        targets = {"refusals": refusals[:EXAMPLES], "private": self.qa(PRIVATE), **self.watched()}
        rule: dict[str, Any] = {"protect": protect, "rectifier": "gru(space=both)"} if protect else {}
        callback = geffect.Callback(targets, examples=EXAMPLES, out=self.runs / name, **rule)
        SFTTrainer(
            loaded.model,
            args=SFTConfig(**self._arguments(name), max_length=256),
            train_dataset=_dataset([{"input_ids": each.input_ids, "labels": each.labels} for each in examples]),
            processing_class=loaded.tokenizer,
            peft_config=_lora(),
            callbacks=[callback],
        ).train()
        return callback.run

    def protect(self) -> geffect.Run:
        """The same, with two targets protected."""
        return self.sft(protect=("general", "world_facts"), name="protect")

    def dpo(self) -> geffect.Run:
        """Preference pairs: the answer, and a wrong one."""
        from trl import DPOConfig, DPOTrainer

        loaded = geffect.load_model("smollm2")
        pairs = [
            {
                "prompt": [{"role": "user", "content": row["question"]}],
                "chosen": [{"role": "assistant", "content": row["answer"]}],
                "rejected": [{"role": "assistant", "content": row["perturbed_answer"][0]}],
            }
            for row in self.rows("tofu:forget10_perturbed")
        ]
        callback = geffect.Callback({"pairs": pairs[:EXAMPLES], **self.watched()}, out=self.runs / "dpo")
        DPOTrainer(
            loaded.model,
            args=DPOConfig(**self._arguments("dpo"), max_length=256),
            train_dataset=_dataset(pairs),
            processing_class=loaded.tokenizer,
            peft_config=_lora(),
            callbacks=[callback],
        ).train()
        return callback.run

    def mixture(self) -> geffect.Run:
        """Two tasks in every batch; the model is kept for `unlearning`."""
        from transformers import Trainer, TrainingArguments

        loaded = geffect.load_model("smollm2")
        tasks = {"authors": self.qa("tofu:forget10", 64), "private": self.qa(PRIVATE, 64)}
        encoded = [geffect.encode_set(loaded.tokenizer, QASet(name, tuple(rows))) for name, rows in tasks.items()]
        targets = {name: rows[:EXAMPLES] for name, rows in tasks.items()} | self.watched()
        callback = geffect.Callback(targets, examples=EXAMPLES, out=self.runs / "mixture")
        settings = self._arguments("mixture") | {"learning_rate": 5e-5}
        Trainer(
            loaded.model,
            TrainingArguments(**settings),
            train_dataset=[example for pair in zip(*encoded, strict=True) for example in pair],
            data_collator=lambda batch: _without_index(geffect.collate(batch, loaded.tokenizer.pad_token_id)),
            processing_class=loaded.tokenizer,
            callbacks=[callback],
        ).train()
        loaded.model.save_pretrained(self.runs / "mixture-model")
        loaded.tokenizer.save_pretrained(self.runs / "mixture-model")
        return callback.run

    def unlearning(self) -> geffect.Run:
        """The authors are unlearned, the private people retained; other sets are further targets."""
        if not (self.runs / "mixture-model").exists():
            self.mixture()
        run: geffect.Run = geffect.unlearn(
            model=self.runs / "mixture-model",
            forget="tofu:forget10[:64]",
            retain=f"{PRIVATE}[:64]",
            target={"general": f"builtin:general[:{EXAMPLES}]", "world_facts": f"tofu:world_facts[:{EXAMPLES}]"},
            data_dir=self.data,
            objective="npo(beta=0.1)",
            rectifier="gru",
            steps=self.steps,
            batch_size=4,
            learning_rate=2e-5,
            evaluate_every=self.steps,
            prediction=EXAMPLES,
            out=self.runs / "unlearning",
        )
        return run

    def _arguments(self, name: str) -> dict[str, Any]:
        return {
            "output_dir": str(self.runs / f"{name}-host"),
            "max_steps": self.steps,
            "per_device_train_batch_size": 4,
            "gradient_checkpointing": False,
            "learning_rate": 2e-4,
            "lr_scheduler_type": "constant",
            "report_to": "none",
            "logging_steps": 1,
            "save_strategy": "no",
            "use_cpu": True,
            "bf16": False,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            "seed": 0,
        }


def _lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(**LORA)


def _dataset(rows: list[dict[str, Any]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(rows)


def _without_index(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: each for name, each in batch.items() if name != "index"}


def tabulate(name: str, run: geffect.Run, seconds: float) -> pd.DataFrame:
    """A target a row: what the steps said they did to it, what they did, and how well each step was predicted."""
    checked = run.prediction().query("reading == 'update'")
    rows = []
    for target, own in checked.groupby("target", sort=False):
        first, last = own.iloc[0]["before"], own.iloc[-1]["after"]
        rows.append({
            "training": name,
            "target": target,
            "steps": len(own),
            "loss before": first,
            "loss after": last,
            "predicted change": own["predicted"].sum(),
            "measured change": own["measured"].sum(),
            "R2 of steps": r_squared(list(own["predicted"]), list(own["measured"])),
            "seconds": round(seconds),
        })
    return pd.DataFrame(rows)


def study(made: Study, name: str, train: Callable[[], geffect.Run]) -> None:
    """Train where no finished record is there, then draw and tabulate."""
    home, timed = made.runs / name, made.runs / f"{name}.json"
    if not ((home / "DONE").exists() and timed.exists()):
        shutil.rmtree(home, ignore_errors=True)
        began = time.perf_counter()
        train()
        timed.write_text(json.dumps({"seconds": time.perf_counter() - began}), encoding="utf-8")
    run = geffect.Run(home)
    for each in draw_all([find_plot(kind) for kind in ("effects", "conflicts", "prediction")], {name: run})[0]:
        plots.save(each.figure, OUT / f"{name}-{each.name}", each.frame)
    table = tabulate(name, run, json.loads(timed.read_text(encoding="utf-8"))["seconds"])
    table.to_csv(OUT / f"{name}.csv", index=False, float_format="%.6g")
    print(table.to_string(index=False, float_format="%.4g"))


def main(made: Study, only: str | None) -> None:
    """Every training, or one."""
    OUT.mkdir(parents=True, exist_ok=True)
    trainings = {name: getattr(made, name) for name in ("sft", "protect", "dpo", "mixture", "unlearning")}
    for name in [only] if only else trainings:
        study(made, name, trainings[name])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="directory of tofu/ and knowundo/")
    parser.add_argument("runs", type=Path, nargs="?", default=Path("runs/trainings"), help="where to train")
    parser.add_argument("--only", choices=["sft", "protect", "dpo", "mixture", "unlearning"])
    parser.add_argument("--steps", type=int, default=20)
    given = parser.parse_args()
    main(Study(given.data, given.runs, given.steps), given.only)
