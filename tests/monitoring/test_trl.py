"""TRL's trainers, with the callback in them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback

import geffect
from tests.support.judged import judge, train_twice
from tests.support.rows import Rows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning"),  # TRL's own use of transformers
    pytest.mark.filterwarnings("ignore:.*is now located in:FutureWarning"),  # of TRL 1.0
    pytest.mark.filterwarnings("ignore::UserWarning:trl"),
]
SETTINGS: dict[str, Any] = {
    "max_steps": 3,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-3,
    "max_grad_norm": 0.5,
    "seed": 1,
    "report_to": "none",
    "save_strategy": "no",
    "logging_strategy": "no",
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}


def _sft(out: Path) -> tuple[Any, Any, list[dict[str, str]]]:
    from trl import SFTConfig, SFTTrainer

    rows = geffect.load_set("builtin:authors/forget[:8]").examples
    data = [{"prompt": f"Question: {row['question']}\nAnswer:", "completion": f" {row['answer']}"} for row in rows]
    return SFTTrainer, SFTConfig(output_dir=str(out), **SETTINGS), data


def _dpo(out: Path) -> tuple[Any, Any, list[dict[str, str]]]:
    from trl import DPOConfig, DPOTrainer

    rows = geffect.load_set("builtin:authors/forget[:8]").examples
    data = [{"prompt": row["question"], "chosen": " I do not know.", "rejected": f" {row['answer']}"} for row in rows]
    return DPOTrainer, DPOConfig(output_dir=str(out), **SETTINGS), data


@pytest.mark.parametrize("make", [_sft, _dpo], ids=["SFTTrainer", "DPOTrainer"])
def test_trl_trains_to_the_same_bits(make: Any, tmp_path: Path) -> None:
    """And its gradient is measured: supervised fine-tuning on the forget rows lowers their loss."""
    weights: list[dict[str, Tensor]] = []
    callback = geffect.Callback(
        {"forget": "builtin:authors/forget[:8]", "retain": "builtin:authors/retain[:8]"}, batch_size=4
    )
    for callbacks in ([], [callback]):
        loaded = geffect.load_model("builtin:tiny-untrained")
        trainer, config, rows = make(tmp_path)
        trainer(
            loaded.model,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=loaded.tokenizer,
            callbacks=callbacks,
        ).train()
        weights.append({name: tensor.clone() for name, tensor in loaded.model.state_dict().items()})
    plain, monitored = weights
    assert all(torch.equal(plain[name], monitored[name]) for name in plain)
    effects = callback.run.g_effect().groupby("step")["unlearn"].sum()
    assert list(effects.index) == [0, 1, 2]
    assert (effects > 0).all() == (make is _sft)


def _rewarded(completions: Sequence[str], **_: object) -> list[float]:
    """The more characters are different, the better."""
    return [len(set(each)) / 10 for each in completions]


def _rows(kind: str) -> list[dict[str, Any]]:
    examples = geffect.load_set("builtin:authors/forget[:8]").examples
    pairs = [(each["question"], f" {each['answer']}") for each in examples]
    return {
        "sft": [{"prompt": question, "completion": answer} for question, answer in pairs],
        "text": [{"text": question + answer} for question, answer in pairs],
        "preference": [{"prompt": q, "chosen": " I do not know.", "rejected": answer} for q, answer in pairs],
        "judged": [{"prompt": q, "completion": a, "label": i % 2 == 0} for i, (q, a) in enumerate(pairs)],
        "prompts": [{"prompt": question} for question, _ in pairs],
    }[kind]


def _target(tokenizer: Any, name: str) -> Rows:
    encoded = geffect.encode_set(tokenizer, geffect.load_set(name))
    return [{"input_ids": list(each.input_ids), "labels": list(each.labels)} for each in encoded]


def _found(name: str) -> tuple[Any, Any]:
    """A trainer's class and its configuration's, from the place where this version of TRL has them."""
    import trl

    home: Any = trl
    if not hasattr(trl, f"{name}Trainer"):
        home = pytest.importorskip(f"trl.experimental.{name.lower()}")
    return getattr(home, f"{name}Trainer"), getattr(home, f"{name}Config")


ONLINE = {"num_generations": 2, "max_completion_length": 6}
PACKED = {"packing": True, "max_length": 64}


@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [
        ("SFT", "sft", {}),
        ("SFT", "sft", {"loss_type": "dft"}),
        ("SFT", "sft", {"gradient_checkpointing": True}),
        ("SFT", "sft", {"bf16": True}),
        ("SFT", "sft", {"adapter": True}),
        ("SFT", "sft", {"padding_free": True, "max_length": None}),
        ("SFT", "text", PACKED | {"packing_strategy": "bfd"}),
        ("SFT", "text", PACKED | {"packing_strategy": "wrapped"}),
        ("DPO", "preference", {}),
        ("DPO", "preference", {"adapter": True}),
        ("KTO", "judged", {}),
        ("ORPO", "preference", {}),
        ("CPO", "preference", {}),
        ("GRPO", "prompts", ONLINE | {"beta": 0.1, "num_iterations": 2}),
        ("GRPO", "prompts", ONLINE | {"adapter": True}),
        ("RLOO", "prompts", ONLINE),
    ],
    ids=str,
)
def test_a_record_of_trl_is_that_of_a_slow_judge(
    name: str, kind: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And both trainings end in the same bits."""
    from peft import LoraConfig

    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    trainer, config = _found(name)
    settings = SETTINGS | {"gradient_accumulation_steps": 1, "max_steps": 2} | settings
    more: dict[str, Any] = {"reward_funcs": _rewarded} if kind == "prompts" else {}
    adapter = settings.pop("adapter", False)

    def make(callbacks: Sequence[TrainerCallback]) -> Any:
        loaded = geffect.load_model("builtin:tiny-untrained")
        how = {"peft_config": LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")} if adapter else {}
        return trainer(
            loaded.model,
            args=config(output_dir=str(tmp_path), **settings),
            train_dataset=Dataset.from_list(_rows(kind)),
            processing_class=loaded.tokenizer,
            callbacks=list(callbacks),
            **how,
            **more,
        )

    tokenizer = geffect.load_model("builtin:tiny-untrained").tokenizer
    targets = {each: _target(tokenizer, f"builtin:authors/{each}[:3]") for each in ("forget", "retain")}
    callback = geffect.Callback(targets, batch_size=2)
    model, steps = train_twice(make, callback)
    assert len(steps) == 2
    judge(callback.run, model, steps, targets, within=0.1 if settings["bf16"] else 1e-3)
