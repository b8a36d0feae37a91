"""TRL's trainers, with the callback in them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor

import geffect

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning"),  # TRL's own use of transformers
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
