"""The G-effect paper's qualitative findings, checked one by one on the runs at hand (arXiv 2502.19301)."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from analysis.geffect_settings import WEIGHTS
from geffect.record.frames import read, read_points, read_steps
from geffect.reports.compare import at_checkpoints, at_forget_loss, descended

AT_LOSS = 3.0  # nats a token: where regularizers are compared
BLOCKS = ("shallow", "middle", "deep")
Frames = dict[str, pd.DataFrame]


class Claim(NamedTuple):
    """A finding of the paper against these runs.

    Attributes:
        finding: what the paper reports.
        rule: when these runs agree.
        measured: the numbers.
        agrees: yes, no, or — where the runs do not tell.
    """

    finding: str
    rule: str
    measured: str
    agrees: str


def check_claims(found: Mapping[str, Path], ends: Mapping[str, Path]) -> pd.DataFrame:
    """Every finding that the runs at hand speak to.

    Args:
        found: method → its inspection's record.
        ends: RMU's runs by layer and c.

    Returns:
        A row a finding: ``finding``, ``rule``, ``measured``, ``agrees``.
    """
    groups = {name: descended(read(path)) for name, path in found.items()}
    table = {name: at_checkpoints(path) for name, path in found.items()}
    claims = [*ascent(groups), *npo(table, groups), *later(table), *rmu(ends), *regularizers(table)]
    return pd.DataFrame([*claims, *weights(read_points(found["NPO"]))])


def told(agrees: bool) -> str:
    """``yes`` or ``no``."""
    return "yes" if agrees else "no"


def totals(groups: pd.DataFrame) -> pd.DataFrame:
    """G-effects of the whole model by step: columns ``unlearn``, ``retain``."""
    return groups.groupby("step")[["unlearn", "retain"]].sum()


def peak(groups: pd.DataFrame) -> float:
    """The unlearn G-effect of the step where it is largest in size."""
    values = totals(groups)["unlearn"].to_numpy(float)
    return float(values[abs(values).argmax()])


def ascent(groups: Frames) -> Iterator[Claim]:
    """GA: mirrored effects, and which groups carry them."""
    whole = totals(groups["GA"])
    correlation = whole["unlearn"].corr(whole["retain"])
    both = bool((whole[whole.index > 0] < 0).all(axis=None))
    yield Claim(
        "GA's strong unlearn G-effect comes with a retain G-effect of the same shape",
        "both below 0 at every checkpoint, correlation over checkpoints above 0.9",
        f"both below 0 after the start: {told(both)}; correlation {correlation:.3f}; largest "
        f"{whole['unlearn'].min():.4g} (unlearn), {whole['retain'].min():.4g} (retain)",
        told(both and correlation > 0.9),
    )
    sums = groups["GA"].assign(size=groups["GA"]["unlearn"].abs()).groupby("group")["size"].sum()
    shares = sums / sums.sum()
    text = ", ".join(f"{name} {share:.3f}" for name, share in shares.items())
    blocks = shares[[name for name in BLOCKS if name in shares]]
    yield Claim(
        "GA affects shallow layers most",
        "the largest share of Σ|e_u| among the block groups",
        text,
        told(blocks.idxmax() == "shallow"),
    )
    if "embed" in shares:
        yield Claim(
            "the embedding's G-effect is negligible",
            "a share of GA's Σ|e_u| below 0.05",
            f"embed {shares['embed']:.3f}",
            told(bool(shares["embed"] < 0.05)),
        )
    if "lm_head" in shares:
        yield unembedding(groups["GA"], float(shares["lm_head"]))


def unembedding(groups: pd.DataFrame, share: float) -> Claim:
    """GA: the head's effect is large, and stays."""
    head = groups[groups["group"] == "lm_head"].set_index("step")["unlearn"].abs()
    left, others = float(head.iloc[-1] / head.max()), 1 / groups["group"].nunique()
    return Claim(
        "the unembedding's G-effect is large and does not converge",
        "its share of GA's Σ|e_u| above an equal one, and its last |e_u| above 0.1 of its largest",
        f"share {share:.3f} (equal: {others:.3f}); last / largest {left:.3f}",
        told(share > others and left > 0.1),
    )


def npo(table: Frames, groups: Frames) -> Iterator[Claim]:
    """NPO against GA: smaller, and sooner at rest."""
    sizes = {name: abs(peak(groups[name])) for name in ("GA", "NPO")}
    loss = {name: table[name]["forget_loss"].iloc[-1] for name in sizes}
    scale = float(totals(groups["NPO"])["unlearn"].iloc[0] / totals(groups["GA"])["unlearn"].iloc[0])
    yield Claim(
        "NPO's G-effects are smaller than GA's",
        "largest |e_u| of NPO, on GA's scale, below GA's",
        f"NPO {sizes['NPO']:.4g} (an example's sum; {sizes['NPO'] / scale:.3g} over {scale:.1f}, the start's ratio), "
        f"GA {sizes['GA']:.4g} (a token's mean)",
        told(sizes["NPO"] / scale < sizes["GA"]),
    )
    left = {name: abs(totals(groups[name])["unlearn"].iloc[-1]) / sizes[name] for name in sizes}
    yield Claim(
        "NPO converges faster than GA",
        "last |e_u| / largest |e_u| of NPO below GA's",
        ", ".join(f"{name} {left[name]:.4f} (forget loss {loss[name]:.2f} at the end)" for name in sizes),
        told(left["NPO"] < left["GA"]),
    )


def later(table: Frames) -> Iterator[Claim]:
    """PO: what it does early, and later."""
    if "PO" not in table:
        return
    steps = table["PO"].set_index("step")
    effect, error, loss = steps["unlearn"], steps["± unlearn"], steps["forget_loss"]
    told_values = ", ".join(f"{step}: {effect[step]:.3g} ± {error[step]:.2g}" for step in steps.index)
    forgets = effect < -2 * error
    half = steps.index <= steps.index[-1] / 2
    yield Claim(
        "PO unlearns in early steps only",
        "e_u below 0 by two standard errors somewhere in the first half of the steps, and nowhere in the second",
        f"e_u by step {told_values}; forget loss {loss[half].iloc[-1]:.3g} after the first half, {loss.iloc[-1]:.3g} "
        "at the end",
        told(bool(forgets[half].any() and not forgets[~half].any())),
    )
    after, its = effect.iloc[1:], error.iloc[1:]
    most = int(after.argmax())
    falls = bool((loss.diff() < 0).iloc[1:].any())
    yield Claim(
        "PO may relearn later",
        "e_u above 0 by two standard errors at a later checkpoint",
        f"largest e_u after the start {after.iloc[most]:.3g} ± {its.iloc[most]:.2g}; the forget loss falls between two "
        f"checkpoints: {told(falls)}",
        told(bool((after > 2 * its).any())),
    )


def rmu(ends: Mapping[str, Path]) -> Iterator[Claim]:
    """RMU: how far it gets, by layer and c."""
    if not ends:
        return
    last = {name: read_steps(path).iloc[-1] for name, path in ends.items()}
    losses = [row["forget_loss"] for row in last.values()]
    text = "; ".join(
        f"{name}: forget {row['forget_loss']:.3g}, heldout {row['heldout_loss']:.3g}" for name, row in last.items()
    )
    yield Claim(
        "RMU is very sensitive to its layer and c",
        "largest final forget loss over five settings above three times the smallest",
        f"final losses {text}",
        told(max(losses) > 3 * min(losses)),
    )


def regularizers(table: Frames) -> Iterator[Claim]:
    """Among GD, KL and RR: which keeps most at equal forgetting."""
    for base in ("GA", "NPO"):
        names = [name for name in table if name.startswith(f"{base} + ")]
        if len(names) < 2:
            continue
        kept = {name: at_forget_loss(table[name], "heldout_loss", AT_LOSS) for name in [base, *names]}
        reached = {name: loss for name, loss in kept.items() if not math.isnan(loss) and name != base}
        text = ", ".join(f"{name} {loss:.3f}" for name, loss in kept.items())
        best = min(reached, key=lambda name: reached[name], default="")
        missing = len(reached) < len(names)
        yield Claim(
            f"KL is the best regularizer ({base})",
            f"{base} + KL has the lowest heldout loss where the forget loss comes to {AT_LOSS:g}",
            f"heldout loss there: {text}{' (nan: not reached)' if missing else ''}",
            "—" if missing else told(best == f"{base} + KL"),
        )


def weights(points: pd.DataFrame) -> Iterator[Claim]:
    """NPO's weights against its examples' PG-effects."""
    pooled, weight = points[points["step"] > 0], WEIGHTS[0]
    within = [float(rows[weight].rank().corr(rows["retain"].abs().rank())) for _, rows in pooled.groupby("step")]
    parts: dict[str, Any] = {
        "above 0.6": pooled[pooled[weight] > 0.6],
        "0.4 to 0.6": pooled[pooled[weight].between(0.4, 0.6)],
        "below 0.2": pooled[pooled[weight] < 0.2],
    }
    sizes = {name: float(rows["retain"].abs().median()) for name, rows in parts.items()}
    text = ", ".join(f"w {name}: {sizes[name]:.3g} (n = {len(rows)})" for name, rows in parts.items())
    told_by = all(len(parts[name]) > 0 for name in ("above 0.6", "below 0.2"))
    yield Claim(
        "NPO's high weights concentrate where the retain PG-effect is near 0",
        "median |PG_re| at w > 0.6 below that at w < 0.2",
        f"median |PG_re|, checkpoints pooled: {text}; Spearman of w and |PG_re| within a checkpoint, mean "
        f"{sum(within) / len(within):.2f}",
        told(sizes["above 0.6"] < sizes["below 0.2"]) if told_by else "—",
    )
    large = pooled["unlearn"].abs() >= pooled["unlearn"].abs().quantile(0.9)
    small = float((pooled.loc[large, weight] < 0.2).mean())
    rest = float((pooled.loc[~large, weight] < 0.2).mean())
    yield Claim(
        "NPO gives small weights to examples with a large unlearn PG-effect",
        "a larger share of w < 0.2 among the tenth with the largest |PG_un| than among the others",
        f"{small:.2f} against {rest:.2f}",
        told(small > rest),
    )
