"""Draw ``figures/gallery/``: every plot of ``geffect list plots``, one of each, of small runs of the built-in models.

    python -m analysis.gallery [RUNS]

``docs/gallery.md`` shows them with the commands that make the same runs and pictures.
"""

from pathlib import Path
from typing import Any

from PIL import Image

from analysis.runs import AUTHORS, command_line, ensure, keep_configs
from geffect.reports import plots
from geffect.reports.plots.options import Options
from geffect.reports.plots.registry import PLOTS
from geffect.reports.run import Run

OUT, DPI, COLORS = Path("figures/gallery"), 120, 256
METHODS = {"GA": ("ga", "none"), "GA+GRU": ("ga", "gru"), "NPO+GRU": ("npo", "gru")}
SETTINGS: dict[str, Any] = AUTHORS | {
    "steps": 25,
    "learning_rate": 3e-4,
    "evaluate_every": 2,
    "save_every": 5,
    "overlap": 0.1,
    "prediction": 16,
    "standard_errors": True,
    "grad_accum_steps": 2,
    "batch_size": 4,
    "target": ["general=builtin:general"],
}
INSPECTED: dict[str, Any] = {name: AUTHORS[name] for name in ("forget", "retain", "heldout", "batch_size")} | {
    "start": AUTHORS["model"],
    "objective": ["npo"],
    "points": ["npo"],
    "tokens": 4,
    "target": SETTINGS["target"],
}
LOCALIZED = {
    "model": "builtin:tiny-domains",
    "domain": ["privacy=builtin:domains/privacy", "copyright=builtin:domains/copyright"],
}
RELEARNED = {
    "metric": ["loss", "probability"],
    "set": ["forget=builtin:authors/forget", "heldout=builtin:authors/heldout"],
    "relearn": "0,2,5,10",
    "relearn_rate": 1e-4,
}
OF = {  # plot → the directories it is drawn of; of the three runs, where it is not named
    "conflicts": ["GA"],
    "effects": ["GA"],
    "gram": ["GA+GRU"],
    "layers": ["GA"],
    "overlap": ["localized"],
    "overlap_by_layer": ["localized"],
    "points": ["inspected"],
    "prediction": ["GA"],
    "prediction_sums": ["GA"],
    "price": ["GA"],
    "relearning": ["GA-relearned", "NPO+GRU-relearned"],
    "tokens": ["inspected"],
}

OPTIONS = dict.fromkeys(("layers", "points"), Options(scale="symlog"))


def main(runs: Path = Path("runs/gallery"), out: Path = OUT) -> None:
    """Run what is missing, then draw."""
    made = runs_of(runs)
    for name, plot in PLOTS.items():
        of = {each: Run(runs / each) for each in OF.get(name, METHODS)}
        first = next(plot.drawings(of, chosen=OPTIONS.get(name, Options())))
        picture, _ = plots.save(first.figure, out / name, first.frame, ("png",), DPI)
        with Image.open(picture) as colored:
            colored.convert("RGB").quantize(COLORS).save(picture, optimize=True)  # a third of the bytes
    keep_configs(made, out)


def runs_of(runs: Path) -> list[Path]:
    """Run what is missing: three methods, an inspection, a localization and two evaluations."""
    methods = [
        SETTINGS | {"objective": objective, "rectifier": rectifier, "out": runs / name}
        for name, (objective, rectifier) in METHODS.items()
    ]
    made = ensure(methods)
    made += ensure([INSPECTED | {"checkpoints": [str(runs / "NPO+GRU")], "out": runs / "inspected"}], "inspect")
    made += ensure([LOCALIZED | {"out": runs / "localized"}], "localize")
    last = f"checkpoints/checkpoint-{SETTINGS['steps']}"
    relearned = [
        RELEARNED | {"model": str(runs / name / last), "out": runs / f"{name}-relearned"} for name in ("GA", "NPO+GRU")
    ]
    return made + ensure(relearned, "evaluate")


if __name__ == "__main__":
    main(command_line(__doc__, Path("runs/gallery")).parse_args().runs)
