"""Every path of the product once, end to end, on the built-in untrained model."""

from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

from analysis.gpu.running import Check, Number, Numbers, Place
from geffect import api
from geffect.config import EvaluateConfig, FinetuneConfig, InspectConfig, LocalizeConfig, UnlearnConfig
from geffect.record.frames import read_steps
from geffect.record.reader import read_metrics, step_lines

MODEL, FORGET, RETAIN = "builtin:tiny-untrained", "builtin:authors/forget[:8]", "builtin:authors/retain[:8]"
DOMAIN = [f"a={FORGET},{RETAIN}"]
SETS: dict[str, Any] = {"forget": FORGET, "retain": RETAIN, "heldout": "builtin:authors/heldout[:8]"}
STEPS = 2
WINDOW = {"grad_accum_steps": 2, "batch_size": 2}
UNLEARN: dict[str, dict[str, Any]] = {
    "GA": {},
    "GA + GRU": {"rectifier": "gru"},
    "GRU on gradient and update": {"rectifier": "gru(space=both)"},
    "NPO": {"objective": "npo"},
    "NPO + GRU": {"objective": "npo", "rectifier": "gru"},
    "LoRA": {"objective": "npo", "rectifier": "gru", "lora": 4},
    "KL, full reference": {"objective": "ga + kl"},
    "RR, full reference": {"objective": "npo + rr"},
    "KL with LoRA": {"objective": "ga + kl", "lora": 4},
    "RMU": {"objective": "rmu"},
    "DPO": {"objective": "dpo"},
    "adversarial labels": {"objective": "adversarial"},
    "WTNPO, two micro-batches": {"objective": "wtnpo", **WINDOW},
    "top-k overlap, prediction, saved gradients": {
        "overlap": 0.1,
        "prediction": 4,
        "save_gradients": ["objective", "retain"],
    },
    "standard errors": {"standard_errors": True, **WINDOW},
    "published mode": {"mode": "paper"},
    "every other step, clipped": {"diagnose_every": 2, "max_grad_norm": 1.0},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "autocast bfloat16": {"objective": "npo", "autocast": "bfloat16"},
    "bfloat16": {"objective": "npo", "dtype": "bfloat16", "learning_rate": 1e-3},
    "fused AdamW": {"optimizer": "adamw_torch_fused"},
}
FREEZING = {"GRAIL": "grail", "MemFlex": "memflex(mu=1, sigma=0, thresholds=quantile)"}


def checks() -> Iterator[Check]:
    """Unlearn in many ways, localize and freeze, fit, evaluate, inspect."""
    for name, settings in UNLEARN.items():
        yield Check(f"paths/unlearn {name}", partial(_unlearned, settings=settings))
    yield Check("paths/localize", _localized, seconds=15)
    for name, rectifier in FREEZING.items():
        yield Check(f"paths/unlearn {name}", partial(_frozen, rectifier=rectifier), seconds=20)
    yield Check("paths/fit", _fitted)
    yield Check("paths/evaluate", _evaluated, seconds=20)
    yield Check("paths/inspect", _inspected, seconds=20)


def _free(place: Place, name: str) -> str:
    """A folder that is not there yet."""
    return str(next(path for i in range(1000) if not (path := place.folder / f"{name}-{i}").exists()))


def _run(place: Place, **settings: Any) -> Path:
    plain = {"model": MODEL, "steps": STEPS, "batch_size": 4, "evaluate_every": STEPS, "out": _free(place, "unlearn")}
    return api.unlearn(UnlearnConfig.read(None, **(plain | settings))).path


def _unlearned(place: Place, settings: dict[str, Any]) -> Numbers:
    path = _run(place, **SETS, **settings)
    start = read_metrics(path)["start"]["forget"]["loss"]
    rounded = "bfloat16" in settings.values()
    off = abs(start - _loss_on_the_cpu(settings.get("dtype", "float32")))
    return _recorded(path) | {"start loss off the CPU's": Number(off, 0.05 if rounded else 1e-4)}


@cache
def _loss_on_the_cpu(dtype: str) -> float:
    """The forget loss of the start, nats a token, by the product's own function but on the CPU."""
    from geffect.data.encode import encode_set, pad_id_of
    from geffect.data.load import load_set
    from geffect.models.scoring import compute_likelihood

    loaded = api.load_model(MODEL, dtype)
    examples = encode_set(loaded.tokenizer, load_set(FORGET))
    return compute_likelihood(loaded.model.cpu(), examples, pad_id_of(loaded.tokenizer)).loss


def _recorded(path: Path) -> dict[str, Number]:
    """Whether each step has its line and a finite loss, and any step was measured."""
    steps = read_steps(path)
    measured = any(line.norm_objective is not None for line in step_lines(path))
    steps = steps[steps["step"] < STEPS]
    return {
        "steps missing": Number(STEPS - len(steps), 0),
        "losses not finite": Number(int(steps["loss_objective"].isna().sum()), 0),
        "no step measured": Number(float(not measured), 0),
    }


def _masks(place: Place) -> Path:
    return api.localize(LocalizeConfig.read(None, model=MODEL, domain=DOMAIN, out=_free(place, "masks"))).path


def _localized(place: Place) -> Numbers:
    _masks(place)
    return {}


def _frozen(place: Place, rectifier: str) -> Numbers:
    masks = str(_masks(place))
    place.clear()  # that localization used the device is told by its own check
    return _recorded(_run(place, domain=DOMAIN, rectifier=rectifier, masks=masks, objective="ga + gd"))


def _fitted(place: Place) -> Numbers:
    api.finetune(FinetuneConfig.read(None, model=MODEL, train=[FORGET], epochs=1, out=_free(place, "fit")))
    return {}


def _evaluated(place: Place) -> Numbers:
    settings = {"metric": ["probability", "rouge_l_recall"], "set": [f"forget={FORGET}"], "max_new_tokens": 16}
    api.evaluate(EvaluateConfig.read(None, model=MODEL, out=_free(place, "evaluate"), **settings))
    return {}


def _inspected(place: Place) -> Numbers:
    models = {"checkpoints": [MODEL], "start": MODEL, "forget": FORGET, "retain": RETAIN}
    settings = {"objective": ["ga"], "batch_size": 4, "tokens": 1, "points": ["npo"]}
    api.inspect(InspectConfig.read(None, out=_free(place, "inspect"), **models, **settings))
    return {}
