"""Draw ``figures/demo/``: what README shows, from the runs of ``geffect demo``.

    python -m analysis.demo_figures [DEMO]

Starts the demo where DEMO (``runs/demo``) is not there yet. Everything goes through the command line.
"""

import subprocess
import sys
from pathlib import Path

RUNS = ("GA", "GA+GRU", "NPO+GRU")


def main(demo: Path = Path("runs/demo"), out: Path = Path("figures/demo")) -> None:
    """Run what is missing, then draw."""
    if not demo.exists():
        subprocess.run([sys.executable, "-m", "geffect", "demo", "--out", str(demo)], check=True)
    runs = [str(demo / name) for name in RUNS]
    subprocess.run([sys.executable, "-m", "geffect", "figures", *runs, "--out", str(out)], check=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
