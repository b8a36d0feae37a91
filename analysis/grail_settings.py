"""What `analysis.grail_paper` runs: starts, methods, ablations and sweeps."""

from pathlib import Path
from typing import Any

SEEDS, TUNING = (0, 1, 2), 100
LADDER = (1e-4, 3e-4, 1e-3, 3e-3)
DOMAINS = {"privacy": "builtin:domains/privacy", "copyright": "builtin:domains/copyright"}
LLAMA, QWEN2 = "builtin:tiny-domains", "builtin:tiny-domains-qwen2"
COMMON: dict[str, Any] = {"batch_size": 4, "steps": 40, "diagnose_every": 20, "evaluate_every": 40}
STARTS = {
    model: COMMON | {"model": model, "domain": [f"{name}={source}" for name, source in DOMAINS.items()]}
    for model in (LLAMA, QWEN2)
}
WEIGHTED = "0.4*ga + 2*gd"  # the factors −0.4 and +2.0 of MemFlex and GRAIL
OTHER_DOMAIN = {"general": "builtin:authors/retain"}  # out of distribution: authors the models never saw
REGION = "memflex(mu=0.8, sigma=0.2, thresholds=quantile)"  # the published thresholds are Llama-2's


def method(rectifier: str = "none", objective: str = WEIGHTED) -> dict[str, Any]:
    """An objective and a rectifier."""
    return {"objective": objective, "rectifier": rectifier}


METHODS: dict[str, dict[str, Any]] = {
    "GA": method(objective="ga"),
    "random labels": method(objective="random"),
    "adversarial": method(objective="adversarial"),
    "GA + GD, ID": method(objective="ga + gd"),
    "GA + GD, OOD": method(objective="ga + gd(on=general)") | OTHER_DOMAIN,
    "GA + KL, ID": method(objective="ga + kl"),
    "GA + KL, OOD": method(objective="ga + kl(on=general)") | OTHER_DOMAIN,
    "MemFlex": method(REGION),
    "GRAIL": method("grail"),
}
ABLATIONS = {
    "GRAIL, micro-batch": "grail(reading=micro_batch)",
    "without OP-UR": "grail(sets=op_rr)",
    "without OP-RR": "grail(sets=op_ur)",
    "without both": "none",
}
SHARES = (0.05, 0.1, 0.2, 0.3, 0.5)
SWEPT = {"OP-UR, k_unlearn": "k_unlearn", "OP-RR, k_retain": "k_retain"}

PARTS = {"train": "[:40]", "val": "[:20]"}
REAL_METHODS = {"GA + GD": method(), "MemFlex": method(REGION), "GRAIL": method("grail")}


def REAL(data: str, runs: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """SmolLM2's fit, and what its runs share.

    Args:
        data: directory that holds ``knowundo``.
        runs: where the runs lie.

    Returns:
        Settings of ``geffect finetune`` and of ``geffect unlearn``.
    """
    pairs = {
        part: ",".join(f"knowundo:privacy/{split}/{part}{slice_}" for split in ("unlearn", "retention"))
        for part, slice_ in PARTS.items()
    }
    privacy = [
        f"knowundo:privacy/{s}/{part}{slice_}" for s in ("unlearn", "retention") for part, slice_ in PARTS.items()
    ]
    copyright_ = [f"{DOMAINS['copyright']}/{s}/{part}" for s in ("unlearn", "retention") for part in PARTS]
    fitted = {
        "model": "smollm2",
        "lora": 8,
        "data_dir": data,
        "train": privacy + copyright_,
        "learning_rate": 1e-3,
        "epochs": 30,
        "until_accuracy": 0.96,
        "out": runs / "start",
    }
    domains = [f"privacy={pairs['train']}", f"copyright={DOMAINS['copyright']}"]
    base = {
        "model": str(runs / "start"),
        "data_dir": data,
        "domain": domains,
        "validation": [f"privacy={pairs['val']}"],
        "batch_size": 4,
        "steps": 30,
        "learning_rate": 4e-3,
        "schedule": "cosine",
        "warmup_steps": 1,
        "diagnose_every": 10,
        "evaluate_every": 30,
    }
    return fitted, base
