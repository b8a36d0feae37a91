"""What every launched process does: ``torchrun -m tests.support.launched OUT``.

Every rectifier takes two steps. A tiny model in float64 is trained for three steps on rows that are dealt over the
processes, and monitored, once as replicas and once as shards. FSDP1 and a tensor-parallel plan are refused. Then a
Hugging Face Trainer trains twice, with the callback and without.
"""

import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from analysis.guarantees import GUARANTEES, Start, measure
from geffect.core.distributed import full_tensor, num_processes, rank, shard_model
from geffect.errors import GeffectError
from geffect.models.builtin import make_tiny
from geffect.monitoring.callback import Callback
from geffect.monitoring.monitor import Monitor
from geffect.training.checkpoints import ShardedTrainer
from tests.support.cases import NARROW, gpt2, llama
from tests.support.rows import made_rows, nats, padded

FORGET, RETAIN, TRAIN = made_rows([7, 5, 9, 6, 8], 0), made_rows([6, 8, 5, 7], 1), made_rows([6, 9, 7, 5], 2)
STEPS, MODELS = 3, {"gpt2": gpt2, "llama": llama, "protected": gpt2}


def train_monitored(kind: str, out: Path) -> None:
    """Train in a bare loop that is monitored, and of the model ``protected`` rectified."""
    name = out.name.partition("-")[0]
    model = wrapped(MODELS[name]().double(), kind)
    rule: dict[str, Any] = {"protect": ["retain"], "rectifier": "gru(space=both)"} if name == "protected" else {}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    counted = sum(sum(label != -100 for label in row["labels"][1:]) for row in TRAIN)
    with Monitor(model, {"forget": FORGET, "retain": RETAIN}, update=True, batch_size=2, out=out, **rule) as monitor:
        for _ in range(STEPS):
            own = TRAIN[rank() :: num_processes()]
            loss = -nats(model, padded(own)).sum() / counted
            (loss * num_processes()).backward()  # both kinds divide by their number
            monitor.step()
            optimizer.step()
            monitor.updated()
            optimizer.zero_grad()


def wrapped(model: Any, kind: str) -> Any:
    """The model as replicas or shards."""
    if kind == "ddp":
        return DistributedDataParallel(model)
    if kind == "fsdp2":
        blocks = next(module for module in model.modules() if isinstance(module, nn.ModuleList))
        for block in blocks:
            fully_shard(block)
        fully_shard(model)
    return model


def trainer(out: Path, kind: str) -> None:
    """A Trainer's weights with the callback and without."""
    from transformers import TrainingArguments

    for name in ("plain", "monitored"):
        model = gpt2()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.2
        arguments = TrainingArguments(
            output_dir=str(out / kind / f"{name}-checkpoints"),
            max_steps=STEPS,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=2,
            learning_rate=1e-2,
            max_grad_norm=0.5,
            save_strategy="no",
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
            dataloader_pin_memory=False,
            seed=3,
        )
        callbacks = (
            [Callback({"forget": FORGET, "retain": RETAIN}, update=True, out=out / kind / "run")]
            if name == "monitored"
            else []
        )
        if kind == "fsdp2":
            shard_model(model, "cpu")
        ShardedTrainer(
            model, arguments, train_dataset=FORGET + TRAIN, data_collator=padded, callbacks=callbacks
        ).train()
        untied = {key: full_tensor(tensor).clone() for key, tensor in model.state_dict().items()}
        if rank() == 0:
            save_file(untied, out / kind / f"{name}.safetensors")


def rectified(out: Path) -> None:
    """What every rectifier makes of two steps, whose micro-batches are dealt over the processes; and ``sam``."""
    start = Start.of(*make_tiny(vocabulary=400, **NARROW))
    cases = {text: (text, "ga") for text in GUARANTEES if text != "torchjd"} | {"sam": ("gru", "sam(ga) + gd")}
    rows = {name: measure(text, "adamw", "full", start, 2, objective) for name, (text, objective) in cases.items()}
    if rank() == 0:
        out.write_text(json.dumps(rows))


def hidden(out: Path) -> None:
    """FSDP1 keeps gradients in flat parameters of its own; what is said of it goes into a file."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    refused(FullyShardedDataParallel(gpt2(), device_id=torch.device("cpu")), out / f"hidden-{rank()}.txt")


def parallel(out: Path) -> None:
    """The processes of a tensor-parallel plan share each pass."""
    from transformers import LlamaForCausalLM

    llama().save_pretrained(out / "start")  # by the first process alone
    distributed.barrier()
    refused(LlamaForCausalLM.from_pretrained(out / "start", tp_plan="auto"), out / f"parallel-{rank()}.txt")


def refused(model: Any, file: Path) -> None:
    """What a monitor says of a model goes into a file."""
    try:
        Monitor(model, {"forget": FORGET, "retain": RETAIN}).open()
    except GeffectError as error:
        file.write_text(str(error), encoding="utf-8")


def main(out: Path) -> None:
    """All of it in one launch: most of its time goes into importing."""
    distributed.init_process_group("gloo", timeout=timedelta(seconds=120))
    rectified(out / "rectified.json")
    for name in MODELS:
        for kind in ("ddp", "fsdp2"):
            train_monitored(kind, out / f"{name}-{kind}")
    hidden(out)
    parallel(out)
    for kind in ("ddp", "fsdp2"):
        trainer(out, kind)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
