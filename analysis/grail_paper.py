"""The designs of GRAIL's tables and figures (arXiv 2504.12681) from run directories: ``figures/grail/``.

    python -m analysis.grail_paper [RUNS]       the built-in domains: Tables I, III, IV, V, VI, Figures 3 and 4
    python -m analysis.grail_paper --real DATA  SmolLM2 with an adapter on KnowUnDo's privacy domain and the built-in
                                                copyright domain: GA + GD, MemFlex and GRAIL, Figure 3

Every stage (fit, localize, each method) is a run directory; what is finished is reused. The models are small ones of
1.8 million parameters, or 135 million; the paper's have 7 billion.
"""

from pathlib import Path
from typing import Any

from analysis.grail_settings import (
    ABLATIONS,
    DOMAINS,
    LADDER,
    LLAMA,
    METHODS,
    QWEN2,
    REAL,
    REAL_METHODS,
    SEEDS,
    SHARES,
    STARTS,
    SWEPT,
    TUNING,
    method,
)
from analysis.grail_tables import Cell, sweep, table, tabulate
from analysis.runs import command_line, ensure, keep_configs
from geffect.reports import plots
from geffect.reports.plots.registry import draw_all, plots_of
from geffect.reports.run import Run

Settings = dict[str, Any]


class Study:
    """Runs below one directory, from one start.

    Args:
        runs: where they lie.
        base: settings all of them share: model, domains, steps.
        shares: of the masks of every localization.
    """

    def __init__(self, runs: Path, base: Settings, shares: tuple[float, ...] = SHARES) -> None:
        self.runs, self.base, self.shares, self.made = runs, base, shares, list[Path]()

    def localized(self, seed: int, name: str = "all", **changes: Any) -> Path:
        """The localization of a start and its domains."""
        base = {key: self.base[key] for key in ("model", "domain", "validation", "data_dir") if key in self.base}
        settings = base | {"share": list(self.shares), "seed": seed} | changes
        return ensure([settings | {"out": self.runs / f"localized-{name}-{seed}"}], "localize")[0]

    def run(self, name: str, seed: int, **settings: Any) -> Path:
        """One run; what freezes is given the localization of its own seed."""
        if settings.get("rectifier", "none") != "none" and "masks" not in settings:
            settings["masks"] = self.localized(seed)
        out = self.runs / f"{name.replace(' ', '').replace(',', '-').replace('+', '-')}-{seed}"
        (path,) = ensure([self.base | settings | {"seed": seed, "out": out}])
        self.made.append(path)
        return path

    def cells(self, name: str, settings: Settings, seeds: tuple[int, ...] = SEEDS) -> list[Cell]:
        """A row of a table: the run of every seed."""
        return [Cell(name, seed, self.run(name, seed, **settings)) for seed in seeds]

    def tuned(self, name: str, settings: Settings) -> Settings:
        """The learning rate of `LADDER` with the best mean HS on a seed that no table shows."""
        tried = {rate: self.run(f"{name}-lr{rate:g}", TUNING, **settings, learning_rate=rate) for rate in LADDER}
        scores = {rate: tabulate([Cell(name, TUNING, path)])["HS, mean"].iloc[0] for rate, path in tried.items()}
        return settings | {"learning_rate": max(scores, key=lambda rate: float(scores[rate]))}


def interactions(study: Study, settings: Settings) -> list[Cell]:
    """Table IV: one domain alone, one after the other in both orders, both merged; MemFlex, each localized anew."""
    cells = []
    for seed in SEEDS:
        for first, second in (("privacy", "copyright"), ("copyright", "privacy")):
            alone = _single(study, f"only {first}", study.base["model"], first, seed, settings)
            after = _single(study, f"{first} then {second}", str(alone), second, seed, settings)
            cells += [Cell(f"only {first}", seed, alone), Cell(f"{first} then {second}", seed, after, alone)]
    return sorted(cells, key=lambda cell: [each.name for each in cells].index(cell.name))


def _single(study: Study, name: str, model: str, domain: str, seed: int, settings: Settings) -> Path:
    """MemFlex on one domain, from any start; both are validated."""
    own = [each for each in study.base["domain"] if each.startswith(f"{domain}=")]
    place = name.replace(" ", "-")
    masks = study.localized(seed, name=place, model=model, domain=own)
    validation = [f"{each}={DOMAINS[each]}" for each in DOMAINS if each != domain]
    return study.run(name, seed, **settings, model=model, domain=own, validation=validation, masks=masks)


def main(runs: Path = Path("runs/grail"), out: Path = Path("figures/grail")) -> None:
    """Run what is missing on the built-in domains, then draw and tabulate."""
    for label, model in (("table1", LLAMA), ("table3", QWEN2)):
        study = Study(runs / label, STARTS[model])
        tuned = {name: study.tuned(name, settings) for name, settings in METHODS.items()}
        cells = [cell for name, settings in tuned.items() for cell in study.cells(name, settings)]
        wide = table(cells, out / label, start=True)
        if model == LLAMA:
            harmonic = [name for name in wide if name == "method" or str(name).startswith("HS")]
            wide[harmonic].to_csv(out / "table5.csv", index=False, float_format="%.4f")
            _further(study, tuned, cells, out)
        keep_configs(study.made, out / label)


def _further(study: Study, tuned: dict[str, Settings], cells: list[Cell], out: Path) -> None:
    """Tables IV and VI, and Figures 3 and 4, with the settings Table I found."""
    by_name = {name: [cell for cell in cells if cell.name == name] for name in tuned}
    four = interactions(study, tuned["MemFlex"])
    joint = [Cell("combined (MemFlex)", cell.seed, cell.path) for cell in by_name["MemFlex"]]
    table([*four, *joint, *by_name["GRAIL"]], out / "table4", start=True)
    six = [
        c for name, rectifier in ABLATIONS.items() for c in study.cells(name, tuned["GRAIL"] | {"rectifier": rectifier})
    ]
    table([*by_name["GRAIL"], *six], out / "table6", relative_to="without both")
    _overlaps(study.localized(SEEDS[0]), out / "figure3")
    swept = [
        (which, share, cell)
        for which, name in SWEPT.items()
        for share in SHARES
        for cell in study.cells(f"GRAIL {name}={share:g}", tuned["GRAIL"] | method(f"grail({name}={share:g})"))
    ]
    frame = sweep(swept)
    plots.save(plots.success_sweep(frame), out / "figure4", frame)


def _overlaps(localized: Path, out: Path) -> None:
    """Figure 3: how far the masks of a tenth of the entries overlap."""
    runs = {"localized": Run(localized)}
    for each in draw_all(plots_of(runs), runs)[0]:
        if each.name.endswith("-0.1"):
            plots.save(each.figure, out / each.name, each.frame)


def real(data: str, runs: Path = Path("runs/grail_real"), out: Path = Path("figures/grail_real")) -> None:
    """Fit, localize, and unlearn in three ways on SmolLM2; one seed."""
    fitted, base = REAL(data, runs)
    ensure([fitted], "finetune")
    study = Study(runs, base, shares=(0.1, 0.2))
    _overlaps(study.localized(0), out / "figure3")
    cells = [cell for name, settings in REAL_METHODS.items() for cell in study.cells(name, settings, (0,))]
    table(cells, out / "table", start=True, costs=True)
    keep_configs(study.made, out)


if __name__ == "__main__":
    parser = command_line(__doc__, Path("runs/grail"))
    parser.add_argument("--real", metavar="DATA", help="the study of SmolLM2, with the data sets in DATA")
    chosen = parser.parse_args()
    if chosen.real:
        real(chosen.real)
    else:
        main(chosen.runs)
