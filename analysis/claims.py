"""Draw ``figures/claims/``: the claims of three papers, each decided over seeds by a rule written before any run.

    python -m analysis.claims [RUNS] [--seeds N] [--only KEY ...] [--plan]  the built-in models
    python -m analysis.claims --model smollm2 --start START --data DATA     SmolLM2, fitted to TOFU in START

Of the built-in models a seed is one of the start, fitted anew to the same sets, and of the order of data; of SmolLM2 it
is one of the order, and of the start too where START holds ``{seed}``.

``claims.csv`` beside this file is the table: what a paper reports, the rule, and the runs that it reads. A rule
measures one margin a seed, which is above 0 where the claim holds; `verdict` alone decides over seeds. When the rules
were written, runs of one seed and of other starts were known (docs/papers.md), and none of these.

*Curves*: the authors, AdamW at 3e-4, batches of 8, until the forget loss comes to 3 nats a token (the *level*), 60
steps at most, evaluated after each (with a retain term, after every second). What a run *keeps* is its token accuracy
on the heldout set at the level, linear between evaluations; a claim is undecided where it does not come there. A
retain term has the weights 0.3, 1 and 3. *Checkpoints*: the start and steps 4, 8, …, 24 of a run that goes on, over
all forget and all retain examples; e_u and e_r are the G-effects of the objective on the forget and the retain loss,
and below 0 they raise it. *Domains*: 40 steps, batches of 4; US, RS and HS in percent on validation sets, means of
both domains; learning rates 1e-4, 3e-4 and 1e-3 (low, middle, high); GRAIL and MemFlex descend 0.4 GA + 2 GD. The
*best* weight or rate is that of each seed, for every method alike. These are the built-in models' sizes;
`claims_runs.smollm2` has SmolLM2's.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy import stats

from analysis.runs import command_line, keep_configs
from geffect.reports import plots
from geffect.reports.compare import at_forget_loss

if TYPE_CHECKING:
    from analysis.claims_runs import Seed

Frames = Mapping[str, pd.DataFrame]
Numbers = dict[str, float]
Rule = Callable[[Frames], Numbers]

LEVEL = 3.0  # nats a token
UPPER = ("middle", "high")


def read_claims() -> pd.DataFrame:
    """The table, a row a claim by ``key``; ``runs`` is a list of names, of which ``*`` stands for any part."""
    table = pd.read_csv(Path(__file__).with_suffix(".csv"), dtype=str).set_index("key")
    return table.assign(runs=table["runs"].str.split("; "))


def verdict(margins: Iterable[float]) -> tuple[str, float, float]:
    """The one rule over seeds.

    ``holds``: every seed's margin is above 0, and so is the 95 % t interval of their mean; ``fails``: all of that lies
    below 0; ``unclear``: everything else, fewer than three seeds and an undecided one (NaN) included.

    Returns:
        The verdict, and the interval's ends (NaN where there is none).
    """
    values = np.array(list(margins), float)
    if len(values) < 3 or not np.isfinite(values).all():
        return "unclear", np.nan, np.nan
    half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
    low, high = float(values.mean()) - half, float(values.mean()) + half
    if low > 0 and (values > 0).all():
        return "holds", low, high
    return ("fails" if high < 0 and (values < 0).all() else "unclear"), low, high


# What a rule measures: frames of one seed's runs → ``margin`` (NaN: undecided) and the numbers behind it.


def _whole(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a checkpoint: G-effects summed over layer groups."""
    sums = {"unlearn": "sum", "retain": "sum", "forget_loss": "first", "cosine": "first"}
    return frame.groupby("step", as_index=False).agg(sums)


def _sizes(frames: Frames, name: str) -> "pd.Series[float]":
    return _whole(frames[f"{name} checkpoints"])["unlearn"].abs()


def _mirrored(frames: Frames) -> Numbers:
    effects = _whole(frames["GA checkpoints"])
    correlation = float(effects["unlearn"].corr(effects["retain"]))
    return {"margin": correlation - 0.9, "correlation": correlation}


def _harmful(frames: Frames) -> Numbers:
    largest = float(_whole(frames["GA checkpoints"])["cosine"].iloc[1:].max())
    return {"margin": -largest, "largest cosine": largest}


def _explodes(frames: Frames) -> Numbers:
    sizes = _sizes(frames, "GA").to_numpy()
    return {"margin": float(np.log(sizes[-1] / sizes[:-1].max())), "first |e_u|": sizes[0], "last": sizes[-1]}


def _tamed(frames: Frames) -> Numbers:
    ga, wga = (_whole(frames[f"{name} checkpoints"]) for name in ("GA", "WGA"))
    start = float(ga["unlearn"].iloc[0] / wga["unlearn"].iloc[0])
    level = at_forget_loss(ga, "unlearn", LEVEL) / at_forget_loss(wga, "unlearn", LEVEL)
    return {"margin": float(np.log(abs(level / start) / 2)), "GA / WGA at the start": start, "at the level": level}


def _milder(frames: Frames) -> Numbers:
    growth = {name: float(_sizes(frames, name).max() / _sizes(frames, name).iloc[0]) for name in ("GA", "NPO")}
    return {"margin": float(np.log(growth["GA"] / growth["NPO"])), **growth}


def _sooner(frames: Frames) -> Numbers:
    left = {name: float(_sizes(frames, name).iloc[-1] / _sizes(frames, name).max()) for name in ("GA", "NPO")}
    return {"margin": left["GA"] - left["NPO"], **left}


def _points(frames: Frames) -> pd.DataFrame:
    """NPO's weights and PG-effects after the start, where every weight is 1."""
    points = frames["NPO checkpoints: points"]
    return points[points["step"] > 0]


def _weights_fall(frames: Frames) -> Numbers:
    first, *_, last = frames["NPO checkpoints: points"].groupby("step")["npo"].mean()
    return {"margin": first / 2 - last, "first": first, "last": last}


def _pooled_weights(frames: Frames) -> Numbers:
    points = _points(frames)
    high, low = (points["retain"][chosen].abs().median() for chosen in (points["npo"] > 0.6, points["npo"] < 0.2))
    return {"margin": float(np.log(low / high)), "w > 0.6": float(high), "w < 0.2": float(low)}


def _weights_within(frames: Frames) -> Numbers:
    by_step = _points(frames).groupby("step")
    found = [float(each["npo"].corr(each["retain"].abs(), method="spearman")) for _, each in by_step]
    return {"margin": -float(np.mean(found)), "least": min(found), "largest": max(found)}


def _early_only(frames: Frames) -> Numbers:
    effects = _whole(frames["PO checkpoints"])
    sizes = (-effects["unlearn"]).clip(lower=0)
    early = effects["step"] <= effects["step"].max() / 2
    most = float(sizes[early].max()), float(sizes[~early].max())
    return {"margin": 0.25 - most[1] / most[0] if most[0] else np.nan, "early": most[0], "late": most[1]}


def _relearns(frames: Frames) -> Numbers:
    effects = _whole(frames["PO checkpoints"])
    last, falls = float(effects["unlearn"].iloc[-1]), float(-effects["forget_loss"].diff().min())
    return {"margin": last / _sizes(frames, "PO").max(), "last e_u": last, "largest fall of forget loss": falls}


def _shares(frames: Frames) -> "pd.Series[float]":
    """Each layer group's share of GA's Σ|e_u| over checkpoints."""
    groups = frames["GA checkpoints"]
    sums = groups["unlearn"].abs().groupby(groups["group"]).sum()
    return sums / sums.sum()


def _shallow(frames: Frames) -> Numbers:
    shares = _shares(frames)
    return {
        "margin": shares["shallow"] - shares[["middle", "deep"]].max(),
        **dict(zip(map(str, shares.index), shares, strict=True)),
    }


def _embedding(frames: Frames) -> Numbers:
    share = float(_shares(frames).get("embed", np.nan))
    return {"margin": 0.05 - share, "share": share}


def _head(frames: Frames) -> Numbers:
    shares = _shares(frames)
    share = float(shares.get("lm_head", np.nan))
    return {"margin": share - 1 / len(shares), "share": share, "equal share": 1 / len(shares)}


def _head_stays(frames: Frames) -> Numbers:
    groups = frames["GA checkpoints"]
    sizes = groups[groups["group"] == "lm_head"].sort_values("step")["unlearn"].abs().to_numpy()
    left = float(sizes[-1] / sizes.max()) if len(sizes) else np.nan
    return {"margin": left - 0.5, "last / largest": left}


def _sensitive(*names: str) -> Rule:
    def rule(frames: Frames) -> Numbers:
        losses = {name: float(frames[name]["forget_loss"].iloc[-1]) for name in names}
        return {"margin": float(np.log(max(losses.values()) / min(losses.values()) / 3)), **losses}

    return rule


def _predicted(run: str, reading: str) -> Rule:
    def rule(frames: Frames) -> Numbers:
        rows = frames[run][frames[run]["reading"] == reading].groupby("target")
        change = rows["after"].last() - rows["before"].first()
        ratios = {f"{target}: sum / change": float(each) for target, each in (rows["predicted"].sum() / change).items()}
        return {"margin": 0.1 - max(abs(each - 1) for each in ratios.values()), **ratios}

    return rule


def _kept(frames: Frames, names: Iterable[str]) -> dict[str, float]:
    """Heldout accuracy at the level, a run each; NaN where it does not come there."""
    return {name: at_forget_loss(frames[name], "heldout_accuracy", LEVEL) for name in names}


def _keeps_more(mine: Iterable[str], other: Iterable[str]) -> Rule:
    """The best of several runs against the best of several."""

    def rule(frames: Frames) -> Numbers:
        found = [_kept(frames, names) for names in (mine, other)]
        best = [max(filter(np.isfinite, each.values()), default=np.nan) for each in found]
        return {"margin": best[0] - best[1], **found[0], **found[1]}

    return rule


def _weighted(term: str, then: str = "") -> list[str]:
    return [f"GA + {weight} {term}{then}" for weight in ("0.3", "1", "3")]


def _falls_with_cosine(*, given_step: bool) -> Rule:
    def rule(frames: Frames) -> Numbers:
        found = {name: _rank_correlation(frames[name], given_step=given_step) for name in ("GA", "NPO", "WGA")}
        return {"margin": -float(np.mean(list(found.values()))), **found}

    return rule


def _rank_correlation(curve: pd.DataFrame, *, given_step: bool) -> float:
    """Spearman's of a step's cosine and the rise of the heldout loss by it; the partial one, given the step."""
    rows = curve.assign(rise=curve["heldout_loss"].diff().shift(-1)).dropna(subset=["cosine", "rise"])
    r = rows[["cosine", "rise", "step"]].corr(method="spearman").to_numpy()
    if not given_step:
        return float(r[0, 1])
    return float((r[0, 1] - r[0, 2] * r[1, 2]) / np.sqrt((1 - r[0, 2] ** 2) * (1 - r[1, 2] ** 2)))


def _retain_stays(frames: Frames) -> Numbers:
    rises = {}
    for name in ("GA, GRU", "GA"):
        curve = frames[name]
        rises[name] = at_forget_loss(curve, "retain_loss", LEVEL) - float(curve["retain_loss"].iloc[0])
    return {"margin": 0.1 - rises["GA, GRU"], **rises}


def _best_of_all(frames: Frames) -> Numbers:
    best: Numbers = {}
    for name, frame in frames.items():
        method = name.removeprefix("1: ").rpartition(", ")[0]
        best[method] = max(best.get(method, 0), float(frame["HS"].mean()))
    return {"margin": best["GRAIL"] - max(each for name, each in best.items() if name != "GRAIL"), **best}


def _scores_higher(kind: str, mine: list[str], other: list[str], pick: Callable[[list[float]], float]) -> Rule:
    """US, RS or HS (means of domains) of several runs, their best or their mean, against that of others."""

    def rule(frames: Frames) -> Numbers:
        found = [{name: float(frames[name][kind].mean()) for name in names} for names in (mine, other)]
        values = [float(pick(list(each.values()))) for each in found]
        return {"margin": values[0] - values[1], **found[0], **found[1]}

    return rule


def _rated(name: str, *rates: str) -> list[str]:
    return [f"{name}, {rate}" for rate in rates or ("low", *UPPER)]


def _overlaps(frames: Frames) -> tuple["pd.Series[float]", "pd.Series[float]"]:
    """Jaccard indices of the tenths of largest importance, within a domain and across."""
    rows = frames["localized"].query("share == 0.1 and gradient != other")
    same = rows["gradient"].str.split("/").str[-1] == rows["other"].str.split("/").str[-1]
    return rows["jaccard"][same], rows["jaccard"][~same]


def _overlap_within(frames: Frames) -> Numbers:
    within, across = (float(each.mean()) for each in _overlaps(frames))
    return {"margin": within - across, "within": within, "across": across}


def _overlap_across(frames: Frames) -> Numbers:
    least = float(_overlaps(frames)[1].min())
    return {"margin": least - 0.1 / 1.9, "least across": least}  # of two random tenths: 0.1² / (0.2 − 0.1²)


_GRAIL, _ONE, _MEAN = _rated("1: GRAIL", *UPPER), ["1: GRAIL, middle"], np.mean
RULES: dict[str, Rule] = {
    "1a": _mirrored,
    "1b": _harmful,
    "2a": _explodes,
    "2b": _tamed,
    "3a": _milder,
    "3b": _sooner,
    "3c": _weights_fall,
    "3d": _pooled_weights,
    "3e": _weights_within,
    "4a": _keeps_more(["TNPO"], ["NPO"]),
    "4b": _keeps_more(["WTNPO"], ["NPO"]),
    "5a": _early_only,
    "5b": _relearns,
    "6a": _sensitive("RMU low layer", "RMU", "RMU high layer"),
    "6b": _sensitive("RMU small c", "RMU", "RMU large c"),
    "7a": _keeps_more(_weighted("KL"), _weighted("GD")),
    "7b": _keeps_more(_weighted("KL"), _weighted("RR")),
    "8a": _shallow,
    "8b": _embedding,
    "8c": _head,
    "8d": _head_stays,
    "9a": _predicted("GA by SGD", "gradient"),
    "9b": _predicted("GA by AdamW", "gradient"),
    "9c": _predicted("GA by AdamW", "update"),
    "10a": _falls_with_cosine(given_step=False),
    "10b": _falls_with_cosine(given_step=True),
    "11a": _keeps_more(["GA, GRU"], ["GA"]),
    "11b": _keeps_more(["NPO, GRU"], ["NPO"]),
    "11c": _keeps_more(["WGA, GRU"], ["WGA"]),
    "11d": _keeps_more(["SimNPO, GRU"], ["SimNPO"]),
    "11e": _keeps_more(_weighted("GD", ", GRU"), _weighted("GD")),
    "12": _retain_stays,
    "13": _best_of_all,
    "14a": _scores_higher("HS", _ONE, ["4: privacy then copyright", "4: copyright then privacy"], max),
    "14b": _scores_higher("HS", _ONE, ["1: MemFlex, middle"], max),
    "15a": _scores_higher("RS", _GRAIL, _rated("6: without OP-UR", *UPPER), _MEAN),
    "15b": _scores_higher("RS", _GRAIL, _rated("6: without OP-RR", *UPPER), _MEAN),
    "16a": _overlap_within,
    "16b": _overlap_across,
    "17a": _scores_higher("RS", _rated("f4: k_unlearn=0.5", *UPPER), _rated("f4: k_unlearn=0.05", *UPPER), _MEAN),
    "17b": _scores_higher("RS", _rated("f4: k_retain=0.5", *UPPER), _rated("f4: k_retain=0.05", *UPPER), _MEAN),
    "18a": _scores_higher("HS", _rated("1: GA + GD, ID"), _rated("1: GA + GD, OOD"), max),
    "18b": _scores_higher("HS", _rated("1: GA + KL, ID"), _rated("1: GA + KL, OOD"), max),
    "19a": _scores_higher("HS", _GRAIL, _rated("random GRAIL", *UPPER), _MEAN),
    "19b": _scores_higher("HS", _rated("1: MemFlex", *UPPER), _rated("random MemFlex", *UPPER), _MEAN),
}


def measure(key: str, frames: Frames, seed: int) -> pd.DataFrame:
    """What one claim's rule measures on one seed: ``claim``, ``seed``, ``quantity``, ``value``; the margin first."""
    numbers = RULES[key](frames)
    return pd.DataFrame({"claim": key, "seed": seed, "quantity": list(numbers), "value": list(numbers.values())})


def judge(table: pd.DataFrame, measured: pd.DataFrame) -> pd.DataFrame:
    """A row a claim: what the table says of it, ``verdict``, ``low`` and ``high``, and each seed's margin."""
    margins = measured[measured["quantity"] == "margin"].pivot(index="claim", columns="seed", values="value")
    found = [(key, *verdict(margins.loc[key])) for key in table.index]
    ends = pd.DataFrame(found, columns=["claim", "verdict", "low", "high"]).set_index("claim")
    ends["seeds that agree"] = (margins > 0).sum(axis=1)
    named = table.rename_axis("claim")[["paper", "reports", "rule"]]
    return named.join(ends).join(margins.add_prefix("margin of seed ")).reset_index()


COLORS = {"holds": ("#0072b2", "o"), "fails": ("#d55e00", "X"), "unclear": ("0.5", "D")}


def draw(verdicts: pd.DataFrame) -> Any:
    """A row a claim: each seed's margin and the interval of their mean, on a scale of the row's own."""
    with plt.rc_context(plots.STYLE):
        figure, axes = plt.subplots(figsize=(7, 0.17 * len(verdicts) + 0.9), layout="constrained")
        for place, (_, row) in enumerate(verdicts[::-1].iterrows()):
            margins = row.filter(like="margin of seed ").to_numpy(float)
            ends = np.array([row["low"], row["high"]], float)
            scale = np.abs(np.nan_to_num([*margins, *ends])).max() or 1.0
            color, marker = COLORS[row["verdict"]]
            axes.hlines(place, *(ends / scale), color=color, lw=1.2)
            axes.plot(margins / scale, np.full(len(margins), place), marker, color=color, ms=3.5, mew=0)
            mean = f"{margins.mean():.2g}" if np.isfinite(margins).all() else "undecided"
            axes.text(1.02, place, mean, transform=axes.get_yaxis_transform(), va="center", size=6.5)
        for name, (color, marker) in COLORS.items():
            axes.plot([], [], marker, color=color, ms=3.5, label=name)
        labels = verdicts["claim"] + "  " + verdicts["reports"].str.slice(0, 76)
        axes.axvline(0, color="0.3", lw=0.8)
        axes.set(
            yticks=range(len(verdicts)), yticklabels=labels[::-1], xlim=(-1.08, 1.08), ylim=(-0.7, len(verdicts) - 0.3)
        )
        axes.set(xlabel="margin, in units of the row's largest; mean on the right", xticks=[-1, 0, 1])
        axes.tick_params(axis="y", labelsize=6.5)
        axes.grid(axis="y", color="0.92", lw=0.5)
        figure.legend(loc="outside upper right", ncols=3, frameon=False)
    return figure


def main(seeds: Sequence["Seed"], keys: Sequence[str], out: Path) -> pd.DataFrame:
    """Run what is missing, decide, tabulate and draw; returned are the verdicts."""
    started = time.perf_counter()
    table = read_claims().loc[list(keys)]
    measured = pd.concat(
        [measure(key, runs.frames(table["runs"][key]), seed) for seed, runs in enumerate(seeds) for key in table.index],
        ignore_index=True,
    )
    verdicts = judge(table, measured)
    plots.save(draw(verdicts), out / "verdicts", verdicts)
    measured.to_csv(out / "claims.csv", index=False, float_format="%.6g")
    keep_configs(seeds[0].directories(), out)  # other seeds' differ in the seed alone
    print(verdicts[["claim", "verdict", "low", "high", "reports"]].to_string(index=False, float_format="%.3g"))
    print(f"{len(seeds)} seeds, {(time.perf_counter() - started) / 60:.1f} min")
    return verdicts


def show_plan(seeds: Sequence["Seed"], keys: Sequence[str], seconds: Mapping[str, float]) -> None:
    """Print the chosen claims' runs, how many of each kind are missing, and an estimate of their minutes."""
    table, rows = read_claims(), []
    for runs in seeds:
        for name in runs.closure([each for key in keys for each in runs.matching(table["runs"][key])]):
            minutes = 0.0 if runs.finished(name) else seconds[runs.plan[name].kind] / 60
            rows.append({"run": name, "kind": runs.plan[name].kind, "missing": minutes > 0, "minutes": minutes})
    plan = pd.DataFrame(rows)
    print(*(f"{kind}: {'; '.join(dict.fromkeys(part['run']))}" for kind, part in plan.groupby("kind")), sep="\n")
    print(plan.groupby("kind")[["missing", "minutes"]].sum().round(1).to_string())
    print(f"about {plan['minutes'].sum():.0f} minutes of one core")


def command(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    from analysis.claims_runs import MODELS, Seed, planned

    parser = command_line(__doc__, Path("runs/claims"))
    parser.add_argument("--model", choices=MODELS, default="tiny", help="(default: tiny)")
    parser.add_argument("--start", help="of smollm2: the model fitted to TOFU; {seed} stands for the seed")
    parser.add_argument("--data", help="of smollm2: the folder with tofu and knowundo")
    parser.add_argument("--seeds", type=int, default=3, help="how many (default: 3)")
    parser.add_argument("--only", nargs="+", choices=RULES, metavar="KEY", help="some claims alone, drawn in RUNS")
    parser.add_argument("--steps", type=int, default=0, help="of every run at most, to try this out; drawn in RUNS")
    parser.add_argument("--plan", action="store_true", help="print the runs and an estimate, and run nothing")
    chosen = parser.parse_args(arguments)
    if chosen.model == "smollm2" and not (chosen.start and chosen.data):
        parser.error("--model smollm2 reads a fitted model and data sets; name --start and --data")
    folder = chosen.runs / (f"{chosen.model}-{chosen.steps}-steps" if chosen.steps else chosen.model)
    model = MODELS[chosen.model](chosen.start or "", chosen.data or "")
    seeds = [Seed(planned(model, seed, chosen.steps), folder / f"{seed}") for seed in range(chosen.seeds)]
    if chosen.plan:
        show_plan(seeds, chosen.only or list(RULES), model.seconds)
    else:
        part = chosen.steps or chosen.only  # no more than a part of the study: it leaves figures/ as it is
        main(seeds, chosen.only or list(RULES), folder if part else Path("figures/claims") / chosen.model)


if __name__ == "__main__":
    command()
