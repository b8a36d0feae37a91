"""Draw ``figures/geffect_paper/``: the designs of the G-effect paper's figures (arXiv 2502.19301).

    python -m analysis.geffect_paper [RUNS]                    the built-in model: twelve objectives
    python -m analysis.geffect_paper --runs PART               make runs, plain or regularized, and draw nothing
    python -m analysis.geffect_paper --real START DATA [RUNS]  SmolLM2 fitted to TOFU in START: GA, WGA, NPO, TNPO

The paper's protocol: train with an objective, keep checkpoints, then measure the G-effects of the very objective at
every one of them, here over whole sets and with standard errors. What is finished is reused; weights are removed once
they are measured. ``claims.csv`` holds the paper's findings against what was measured here, agreeing or not.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.geffect_settings import BY_LAYER, PLAIN, PLANE, REGULARIZED, WEIGHTS, ZOOMED, Study, real, tiny
from analysis.runs import command_line, ensure, inspected, keep_configs

if TYPE_CHECKING:
    import pandas as pd

Records = dict[str, Path]


def main(study: Study, out: Path) -> None:
    """Run what is missing, then draw, tabulate and check the paper's findings."""
    from analysis.geffect_claims import check_claims

    started = time.perf_counter()
    found, ends = records(study), rmu_ends(study)
    keep_configs([*map(run_of, found.values()), *found.values(), *ends.values()], out)
    draw(study, found, out)
    table = check_claims(found, ends)
    table.to_csv(out / "claims.csv", index=False)
    print(table[["finding", "agrees", "measured"]].to_string(index=False))
    print(f"{len(found)} methods, {(time.perf_counter() - started) / 60:.1f} min")


def records(study: Study) -> Records:
    """Every method's record, made where it is missing.

    Args:
        study: what to run.

    Returns:
        Method → its inspection's directory.
    """
    found = {}
    for name, objective in study.methods.items():
        run = study.base | {"objective": objective, "out": study.runs / slug(name)}
        points = {"points": list(WEIGHTS)} if name == "NPO" else {}
        found[name] = inspected(run, study.at, one_pass=study.one_pass, **points)
    return found


def slug(name: str) -> str:
    """A method's directory."""
    return name.replace(" ", "").replace(",", "-").replace("=", "")


def run_of(record: Path) -> Path:
    """The run whose checkpoints a record measured."""
    return record.with_name(record.name.removesuffix("-inspected"))


def rmu_ends(study: Study) -> Records:
    """RMU's runs by layer and c, which are scored but not measured."""
    base = {key: value for key, value in study.base.items() if key != "save_every"}
    settings = [base | {"objective": text, "out": study.runs / f"RMU-{slug(name)}"} for name, text in study.rmu.items()]
    return dict(zip(study.rmu, ensure(settings), strict=True))


def draw(study: Study, found: Records, out: Path) -> None:
    """All pictures, each with the data drawn.

    Args:
        study: what was run.
        found: its records.
        out: where to write.
    """
    from geffect.reports import plots

    draw_planes(study, found, out)
    whole = effects(found)
    for name, methods in (("figure3", PLAIN), ("figure4", ("GA", "NPO", *REGULARIZED))):
        chosen = whole[whole["run"].isin(methods)]
        if name == "figure3" or set(REGULARIZED) & set(found):
            plots.save(plots.g_effect_curves(chosen), out / name, chosen)
            plots.save(plots.g_effect_curves(chosen, page=plots.Page("column")), out / f"{name}_column", chosen)
    early = whole[whole["run"].isin(ZOOMED)]
    plots.save(plots.g_effect_curves(early, study.zoom), out / "figure3b", early)
    draw_points(found, out)
    for name in (each for each in BY_LAYER if each in found):
        layers = effects({name: found[name]}, "layer")
        plots.save(plots.layer_heat_map(layers, "symlog"), out / f"layers_{name}", layers)
    at_all(found).to_csv(out / "checkpoints.csv", index=False, float_format="%.6g")


def draw_planes(study: Study, found: Records, out: Path) -> None:
    """Figure 1: where objectives lie in the plane of the two loss gradients, at the start and later."""
    import pandas as pd

    from geffect.record.frames import read
    from geffect.reports import plots

    chosen = {name: found[name] for name in PLANE if name in found}
    frame = pd.concat([read(path).assign(run=name) for name, path in chosen.items()])
    for name, step in (("figure1", 0), ("figure1_later", study.later)):
        drawn = frame[frame["step"] == step]
        plots.save(plots.g_effect_plane(drawn, step), out / name, drawn)


def draw_points(found: Records, out: Path) -> None:
    """Figure 5: NPO's weights by step, its examples' PG-effects by weight, and TNPO's G-effect."""
    from geffect.record.frames import read_points
    from geffect.reports import plots

    points = read_points(found["NPO"])
    plots.save(plots.weight_curves(points, WEIGHTS), out / "figure5a", points)
    pooled = points[points["step"] > 0]  # at the start every weight is 1
    plots.save(plots.point_plane(pooled, WEIGHTS[0], "symlog"), out / "figure5b", pooled)
    tokenwise = effects({"TNPO": found["TNPO"]})
    plots.save(plots.g_effect_curves(tokenwise), out / "figure5c", tokenwise)


def effects(found: Records, by: str = "group") -> "pd.DataFrame":
    """The G-effects of what was descended, a record after another.

    Args:
        found: method → record.
        by: ``group`` or ``layer``.

    Returns:
        Columns as of `geffect.reports.compare.effects_to_draw`, and ``run``.
    """
    import pandas as pd

    from geffect.reports.compare import effects_to_draw

    return pd.concat([effects_to_draw(path, by).assign(run=name) for name, path in found.items()])


def at_all(found: Records) -> "pd.DataFrame":
    """Losses, whole-model G-effects with standard errors, and cosines of every method at every checkpoint.

    Args:
        found: method → record.

    Returns:
        As `geffect.reports.compare.at_checkpoints`, and ``run``.
    """
    import pandas as pd

    from geffect.reports.compare import at_checkpoints

    return pd.concat([at_checkpoints(path).assign(run=name) for name, path in found.items()])


def make(part: str, study: Study) -> None:
    """Run what is missing of the objectives that are ``plain`` (and RMU's settings) or ``regularized``."""
    chosen = {"plain": PLAIN, "regularized": REGULARIZED}[part]
    records(replace(study, methods=chosen))
    if part == "plain":
        rmu_ends(study)


if __name__ == "__main__":
    TINY_RUNS, REAL_RUNS = Path("runs/geffect_paper"), Path("runs/geffect_real")
    parser = command_line(__doc__, TINY_RUNS)
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--runs", dest="part", choices=("plain", "regularized"), help="make these runs, draw nothing")
    either.add_argument(
        "--real", nargs=2, metavar=("START", "DATA"), help=f"the study of SmolLM2 (RUNS by default: {REAL_RUNS})"
    )
    chosen = parser.parse_args()
    if chosen.real:
        place = REAL_RUNS if chosen.runs == TINY_RUNS else chosen.runs
        start, data = chosen.real
        main(real(start, data, place), Path("figures/geffect_real"))
    elif chosen.part:
        make(chosen.part, tiny(TINY_RUNS))
    else:
        main(tiny(chosen.runs), Path("figures/geffect_paper"))
