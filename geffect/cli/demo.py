"""The demonstration: the tiny model unlearns fictional authors in three ways, and domains with GRAIL and without."""

from pathlib import Path

import pandas as pd

from geffect.api import builtin_tiny, localize, unlearn
from geffect.config import LocalizeConfig, UnlearnConfig
from geffect.record.schema import refuse_existing
from geffect.reports.compare import summarize
from geffect.reports.run import plot

SETTINGS = {
    "model": "builtin:tiny",
    "forget": "builtin:authors/forget",
    "retain": "builtin:authors/retain",
    "heldout": "builtin:authors/heldout",
    "steps": 25,
    "batch_size": 8,
    "learning_rate": 3e-4,
    "evaluate_every": 2,
}
DOMAINS = {
    "model": "builtin:tiny-domains",
    "domain": ["privacy=builtin:domains/privacy", "copyright=builtin:domains/copyright"],
}
WEIGHTED = {"objective": "0.4*ga + 2*gd", "steps": 40, "batch_size": 4, "learning_rate": 1e-3, "evaluate_every": 20}
RUNS = (("GA", "ga", "none"), ("GA+GRU", "ga", "gru"), ("NPO+GRU", "npo", "gru"))


def demo(out: Path, *, overwrite: bool = False) -> pd.DataFrame:
    """Make and draw three runs in a new directory; their table, one row a run, as `geffect.summarize`."""
    if not overwrite:
        refuse_existing(out)
    builtin_tiny()
    configs = [
        UnlearnConfig.read(**SETTINGS, objective=objective, rectifier=rectifier, out=out / name, overwrite=overwrite)
        for name, objective, rectifier in RUNS
    ]
    runs = [unlearn(config) for config in configs]
    plot(runs, out / "figures")
    return summarize(runs)


def demo_grail(out: Path, *, overwrite: bool = False) -> tuple[Path, list[Path]]:
    """Localize two domains and unlearn them without freezing and with GRAIL: the localization, and both runs."""
    localized = localize(LocalizeConfig.read(**DOMAINS, out=out / "localized", overwrite=overwrite)).path
    frozen = {"none": {}, "grail": {"rectifier": "grail", "masks": localized}}
    runs = [
        unlearn(
            UnlearnConfig.read(**DOMAINS, **WEIGHTED, **settings, out=out / f"domains-{name}", overwrite=overwrite)
        ).path
        for name, settings in frozen.items()
    ]
    return localized, runs
