"""A file of user code, checked by mypy as the rest of the tree; it is never run."""

from pathlib import Path

import geffect


def use() -> None:
    """Call the public functions as a user would."""
    run: geffect.Run = geffect.unlearn(
        model="builtin:tiny",
        forget="a.json",
        retain=Path("b.json"),
        objective="npo(beta=0.1) + gd",
        out="runs/a",
        steps=3,
    )
    config = geffect.UnlearnConfig(model="m", forget="f", retain="r", out=Path("runs/b"), rectifier="gru", stop="knee")
    again: geffect.Run = geffect.unlearn(config, resume=True)
    objective: geffect.Objective = config.objective
    terms: int = len(config.objective.terms)
    learned: geffect.Run = geffect.finetune(model="builtin:tiny", train=["a.json"], out="runs/c")
    places: geffect.LocalizationRun = geffect.localize(model="m", domain=["p=a.json,b.json"], out="runs/d")
    (inspected,) = geffect.inspect(checkpoints=[run], objective="ga", out="runs/e")
    scores: geffect.Evaluation = geffect.evaluate(model=str(run.path), suite="tofu", out="runs/f")
    page = geffect.report(runs=[run.path, again.path]).path
    mean: float = scores.to_frame()["value"].mean()
    effects = inspected.g_effect(by="layer")
    frame = geffect.read(run)
    size = geffect.PLOT_STYLE["font.size"]
    matched = geffect.compare([run, again])
    table = geffect.summarize([run, again])
    print(mean, effects, frame, matched, table, objective, terms, learned, places, page, size)
