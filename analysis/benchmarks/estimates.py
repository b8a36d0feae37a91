"""Memory estimates beside what processes really held: ``python -m analysis.benchmarks.estimates FILE.csv [WORD ...]``.

Seventeen verbs and methods run on a model of 44 million untrained parameters, each in a process of its own.
``measured`` is the highest resident memory that the process had, ``estimate`` what its plan said before it began; both
hold the interpreter with its libraries, of which ``idle`` says what a process takes that has only imported them.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

SHAPE = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 6, "num_attention_heads": 12}
AUTHORS = {"forget": "builtin:authors/forget[:8]", "retain": "builtin:authors/retain[:8]"}
STEPS = {"steps": 3, "evaluate_every": 100, "learning_rate": 1e-5, "batch_size": 4}
DOMAIN = "privacy=builtin:domains/privacy[:8]"
UNIT = 1 if sys.platform == "darwin" else 1024  # of what the system tells of a process's peak


def cases(model: Path, masks: Path) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name, verb and settings of every run; ``masks`` is where the localization goes that GRAIL freezes by."""
    plain = {"model": str(model)}
    unlearn = plain | AUTHORS | STEPS
    yield "finetune", "finetune", plain | {"train": ["builtin:authors/forget[:8]"], "steps": 3, "batch_size": 4}
    yield "ga", "unlearn", unlearn | {"objective": "ga"}
    yield "npo, gru", "unlearn", unlearn | {"objective": "npo", "rectifier": "gru"}
    yield "ga + kl", "unlearn", unlearn | {"objective": "ga + kl"}
    yield "npo, lora", "unlearn", unlearn | {"objective": "npo", "lora": 8}
    yield "npo, bfloat16", "unlearn", unlearn | {"objective": "npo", "dtype": "bfloat16"}
    yield "npo, prediction", "unlearn", unlearn | {"objective": "npo", "prediction": 4}
    errors = {"objective": "npo", "grad_accum_steps": 2, "standard_errors": True}
    yield "npo, standard errors", "unlearn", unlearn | errors
    yield "ga, adam metric", "unlearn", unlearn | {"objective": "ga", "adam_metric": True}
    yield "sam", "unlearn", unlearn | {"objective": "sam(npo)"}
    yield "sam, 2 micro-batches", "unlearn", unlearn | {"objective": "sam(npo) + gd", "grad_accum_steps": 2}
    yield "orthograd", "unlearn", unlearn | {"objective": "npo", "rectifier": "orthograd(examples=4)"}
    two = {"domain": [DOMAIN, "copyright=builtin:domains/copyright[:8]"], "rectifier": "consistent"}
    yield "consistent", "unlearn", plain | STEPS | two | {"objective": "ga"}
    yield "localize", "localize", plain | {"domain": [DOMAIN], "out": str(masks)}
    yield "grail", "unlearn", plain | STEPS | {"domain": [DOMAIN], "rectifier": "grail", "masks": str(masks)}
    yield "inspect", "inspect", AUTHORS | {"checkpoints": [str(model)], "start": str(model), "objective": ["npo"]}
    sets = ["forget=builtin:authors/forget[:16]"]
    yield "evaluate", "evaluate", plain | {"metric": ["loss", "accuracy"], "set": sets}


def peak() -> int:
    """The highest resident bytes of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT


def run(verb: str, settings: dict[str, Any]) -> dict[str, int]:
    """Run one verb in this process: bytes at its peak, when idle, and of each part of the estimate."""
    import transformers.trainer  # noqa: F401  what every training imports is no part of what it holds

    from geffect import api, config
    from geffect.evaluation.results import estimate_memory, read_part
    from geffect.evaluation.suites import parts
    from geffect.inspection.tasks import prepare_inspection

    idle = peak()
    asked: Any = getattr(config, f"{verb.capitalize()}Config")(**settings)
    if verb == "evaluate":
        estimate = estimate_memory(asked, [(part, read_part(asked, part)) for part in parts(asked)])
    else:
        estimate = (prepare_inspection(asked) if verb == "inspect" else api.prepare(asked)).memory
    getattr(api, verb)(asked)
    return {"idle": idle, "measured": peak(), "estimate": estimate.total} | estimate.parts()


def main(file: Path, words: list[str]) -> None:
    """Measure every case, or those whose name holds one of the words, and write a line of MB for each."""
    from geffect.models.builtin import make_tiny

    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for each in make_tiny(0, "builtin:tiny", num_key_value_heads=12, **SHAPE):
            each.save_pretrained(Path(folder, "model"))
        for name, verb, settings in cases(Path(folder, "model"), Path(folder, "masks")):
            if words and not any(word in name for word in words):
                continue
            told = alone(verb, {"out": str(Path(folder, name.replace(", ", "-")))} | settings)
            lines.append({"case": name} | {key: round(value / 1e6) for key, value in told.items()})
            print(f"{name}: {told['estimate'] / told['measured']:.2f} of the measured peak", flush=True)
    table = pd.DataFrame(lines).fillna(0)
    file.parent.mkdir(parents=True, exist_ok=True)
    table.assign(ratio=(table["estimate"] / table["measured"]).round(3)).to_csv(file, index=False)


def alone(verb: str, settings: dict[str, Any]) -> dict[str, int]:
    """`run` in a process of its own, on one thread."""
    command = [sys.executable, "-m", "analysis.benchmarks.estimates", "--run", verb, json.dumps(settings)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    ended = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(ended.stdout.splitlines()[-1]))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python -m analysis.benchmarks.estimates FILE.csv [WORD ...]")
    if sys.argv[1] == "--run":
        print(json.dumps(run(sys.argv[2], json.loads(sys.argv[3]))))
    else:
        main(Path(sys.argv[1]), sys.argv[2:])
