"""Draw ``figures/demo/``, what README shows, from the runs of ``geffect demo``.

    python -m analysis.demo_figures [DEMO]

Starts the demo where DEMO (``runs/demo``) is not there yet. Everything goes through the command line; each run's
configuration, with the hash of its start, is kept beside the pictures.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import yaml

RUNS = ("GA", "GA+GRU", "NPO+GRU")


def main(demo: Path = Path("runs/demo"), out: Path = Path("figures/demo")) -> None:
    """Run what is missing, then draw."""
    if not demo.exists():
        subprocess.run([sys.executable, "-m", "geffect", "demo", "--out", str(demo)], check=True)
    runs = [demo / name for name in RUNS]
    subprocess.run([sys.executable, "-m", "geffect", "plot", *map(str, runs), "--out", str(out)], check=True)
    for run in runs:
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        config["reference"].pop("path")  # where this machine keeps the model; its hash stays
        (out / f"{run.name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", metavar="DEMO", nargs="?", type=Path, default=Path("runs/demo"), help="its directory")
    main(parser.parse_args().demo)
