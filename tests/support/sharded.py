"""What every launched process does: ``torchrun -m tests.support.sharded START MASKS OUT BATCH_SIZE METHOD …``.

Methods are run one after another in float64 on shards of a tiny model: most of a launch's time goes into importing.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from geffect import api
from geffect.config import UnlearnConfig
from geffect.core.distributed import local_part, rank
from geffect.training.unlearn import UnlearnTrainer

STEPS = 7
AUTHORS = {"forget": "builtin:authors/forget[:12]", "retain": "builtin:authors/retain[:12]"}
DOMAINS = {"domain": ["a=builtin:domains/privacy[:8]", "b=builtin:domains/copyright[:8]"]}
METHODS: dict[str, dict[str, Any]] = {
    "npo": AUTHORS
    | {
        "objective": "npo + gd",
        "rectifier": "gru(space=both)",
        "max_grad_norm": 0.5,
        "prediction": 4,
        "save_gradients": ["retain_average"],
    },
    "dpo": AUTHORS | {"objective": "dpo + gd"},
    "kl": AUTHORS | {"objective": "ga + kl", "optimizer": "sgd", "weight_decay": 0.1},
    "rmu": AUTHORS
    | {
        "objective": "rmu(layer=2, c=2)",
        "rectifier": "gem(memory=2, space=both, scope=layer)",
        "gradient_checkpointing": True,
    },
    "grail": DOMAINS | {"objective": "0.4*ga + 2*gd", "rectifier": "grail + gru", "weight_decay": 0.1, "overlap": 0.1},
    "lora": AUTHORS | {"objective": "npo", "rectifier": "gru", "lora": 2},
}


def run(name: str, start: Path, masks: Path, out: Path, **changes: Any) -> Path:
    """Unlearn by one method.

    Args:
        name: of `METHODS`.
        start: the model.
        masks: what GRAIL freezes.
        out: where the run goes.
        **changes: further settings.

    Returns:
        The run.
    """
    plain: dict[str, Any] = {
        "model": str(start),
        "dtype": "float64",
        "steps": STEPS,
        "batch_size": 2,
        "learning_rate": 1e-3,
        "diagnose_every": 3,
        "evaluate_every": STEPS,
        "save_every": STEPS,
        "out": out / name,
    }
    frozen = {"masks": masks} if name == "grail" else {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UnlearnTrainer, "finish_run", lambda trainer: finish(trainer, out / f"{name}-{rank()}.json"))
        return api.unlearn(UnlearnConfig.read(None, **(plain | METHODS[name] | frozen | changes))).path


END = UnlearnTrainer.finish_run


def finish(trainer: UnlearnTrainer, file: Path) -> None:
    """End a run, and write how many bytes this process holds between two steps."""
    END(trainer)
    file.write_text(json.dumps(sum(local_part(tensor).nbytes for tensor in held(trainer))))


def held(trainer: UnlearnTrainer) -> Iterator[Tensor]:
    """Weights, those of a reference, the optimizer's averages and a rectifier's memory."""
    yield from trainer.model.parameters()
    if trainer.reference is not None and trainer.reference.model is not trainer.model:
        yield from trainer.reference.model.parameters()
    for state in trainer.optimizer.state.values():
        yield from (each for each in state.values() if isinstance(each, Tensor))
    for memory in trainer.measurement.state.values():
        yield from memory.values()


if __name__ == "__main__":
    for each in sys.argv[5:]:
        run(each, *map(Path, sys.argv[1:4]), shard=True, batch_size=int(sys.argv[4]))
