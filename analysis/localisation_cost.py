"""What localising costs beside its own gradient passes: seconds and peak memory, as ratios within one run.

    python -m analysis.localisation_cost [--model smollm2] [--rows 15] [--repeats 2]

The passes alone, masks only, and masks with mean gradients run in turn, each in a process of its own, on the same
examples of the built-in domains; loading does not count.
"""

import argparse
import json
import subprocess
import sys
import time
from statistics import median
from typing import Any

from geffect.acquisition import localised_rows, scope_losses
from geffect.api import load_model
from geffect.config import LocaliseConfig
from geffect.environment import peak_memory_gb
from geffect.localisation import localise
from geffect.metrics.likelihood import evaluating
from geffect.rows import trainable

KINDS = ("passes", "masks only", "localise")


def measure(kind: str, model: str, rows: int) -> dict[str, float]:
    """Seconds and peak memory of one kind of pass over the examples, in this process."""
    domains = [f"{name}=builtin:domains/{name}[:{rows}]" for name in ("privacy", "copyright")]
    config = LocaliseConfig.read(model=model, domain=domains, out="unused")
    loaded = load_model(model)
    examples, parameters = localised_rows(config, loaded), trainable(loaded.model)
    loaded_gb, began = peak_memory_gb(), time.perf_counter()
    with evaluating(loaded.model):
        losses = scope_losses(config, loaded, examples)
        if kind != "passes":
            localise(parameters, losses, masks_only=kind == "masks only")
        else:
            for each in losses.values():
                for loss in each:
                    loss().backward()
                    for parameter in parameters.values():
                        parameter.grad = None
    count = sum(map(len, examples.values()))
    return {"seconds": time.perf_counter() - began, "GB": peak_memory_gb(), "loaded GB": loaded_gb, "examples": count}


def main(model: str, rows: int, repeats: int) -> None:
    """Alternate the kinds and print medians and ratios."""
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for _ in range(repeats):
        for kind in KINDS:
            command = [sys.executable, "-m", "analysis.localisation_cost", "--model", model, "--rows", str(rows)]
            told = subprocess.run([*command, "--only", kind], check=True, capture_output=True, text=True).stdout
            found[kind].append(json.loads(told.splitlines()[-1]))
    for key in ("seconds", "GB"):
        alone, *others = (median(each[key] for each in found[kind]) for kind in KINDS)
        told = ", ".join(
            f"{kind} {each:.2f} ({each / alone:.2f} ×)" for kind, each in zip(KINDS[1:], others, strict=True)
        )
        print(f"{key}: passes alone {alone:.2f}, {told}")
    first = found["localise"][0]
    print(f"{first['examples']} examples; {first['loaded GB']:.2f} GB once the model is loaded")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rows", type=int, default=15)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--only", choices=KINDS)
    asked = parser.parse_args()
    if asked.only:
        print(json.dumps(measure(asked.only, asked.model, asked.rows)))
    else:
        main(asked.model, asked.rows, asked.repeats)
