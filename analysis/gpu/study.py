"""SmolLM2 fitted to TOFU and unlearned five ways with three seeds, on a GPU: resumed by the same command.

    python -m analysis.gpu.study --gguf PART --gguf PART --data-dir FOLDER [--device cuda] [--runs FOLDER]
    python -m analysis.gpu.study --small --device cpu

A machine without network may take files of a limited size: the parts of the GGUF file, as ``split`` makes them, are
joined. The folder holds ``tofu/*.json``. ``--small`` takes an untrained tiny model and built-in sets, to try the
command itself.
"""

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from analysis.gru_spaces import draw
from analysis.runs import ensure
from geffect.errors import GeffectError

METHODS = {
    ("GA", "none"): {"objective": "ga"},
    ("GA", "gru"): {"objective": "ga", "rectifier": "gru"},
    ("NPO 0.01", "none"): {"objective": "npo(beta=0.01)"},
    ("NPO 0.01", "gru"): {"objective": "npo(beta=0.01)", "rectifier": "gru"},
    ("GA + 3·GD", "none"): {"objective": "ga + 3*gd"},
}
TOFU = {"forget": "tofu:forget01", "retain": "tofu:retain99[:56]", "heldout": "tofu:retain99[56:120]"}
FIT: dict[str, Any] = {"learning_rate": 1e-4, "epochs": 6, "until_accuracy": 0.93, "batch_size": 8}
UNLEARN: dict[str, Any] = {"batch_size": 8, "learning_rate": 5e-5, "steps": 60, "until_accuracy": 0.3}
LOSSES = (2.0, 4.0, 8.0)
SMALL = {name: f"builtin:authors/{name}[:8]" for name in TOFU}
SMALL_FIT: dict[str, Any] = {"learning_rate": 3e-3, "steps": 2, "batch_size": 8}
SMALL_UNLEARN: dict[str, Any] = {"batch_size": 4, "learning_rate": 1e-3, "steps": 2}


def main(
    gguf: Annotated[list[Path] | None, typer.Option(help="a part of the GGUF file; repeat it, in order")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="holds tofu/*.json")] = None,
    device: Annotated[str, typer.Option(help="as of geffect")] = "cuda",
    runs: Annotated[Path, typer.Option(help="directory of the runs; finished ones are reused")] = Path("runs/gpu"),
    out: Annotated[Path, typer.Option(help="where the table and picture go")] = Path("figures/gpu/study"),
    seeds: Annotated[int, typer.Option(min=1, help="of each method")] = 3,
    small: Annotated[bool, typer.Option("--small", help="a tiny untrained model and built-in sets")] = False,
) -> None:
    """Fit what is to be forgotten, unlearn it, and write a table and a picture.

    Raises:
        Exit: with code 2, once a mistake has been told.
    """
    where: dict[str, Any] = {"device": device} | ({"data_dir": data_dir} if data_dir else {})
    try:
        model = "builtin:tiny-untrained" if small else f"gguf:{joined(gguf or [], runs / 'model.gguf')}"
        study(where | {"model": model}, seeds, runs, out, small=small)
    except GeffectError as error:
        typer.echo(f"study: {error}", err=True)
        raise typer.Exit(2) from None


def joined(parts: list[Path], out: Path) -> Path:
    """The file whose parts these are, in order; one of the same size is taken as it is.

    Raises:
        GeffectError: a part is not there, or none is named.
    """
    missing = [each for each in parts if not each.is_file()]
    if missing or not parts:
        what = f"There is no file {missing[0]}" if missing else "No part of the model is named"
        raise GeffectError(what, remedy="Name the parts of the GGUF file with --gguf, or try --small")
    if not (out.exists() and out.stat().st_size == sum(each.stat().st_size for each in parts)):
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("wb") as whole:
            for each in parts:
                with each.open("rb") as part:
                    shutil.copyfileobj(part, whole)
    return out


def study(settings: dict[str, Any], seeds: int, runs: Path, out: Path, *, small: bool) -> None:
    """Run what is missing, then tabulate and draw."""
    sets, fit, unlearn = (SMALL, SMALL_FIT, SMALL_UNLEARN) if small else (TOFU, FIT, UNLEARN)
    known = [sets["forget"], sets["retain"], sets["heldout"]]
    (start,) = ensure([settings | fit | {"train": known, "out": runs / "start"}], "finetune")
    plain = settings | sets | unlearn | {"model": str(start), "evaluate_every": 1, "diagnose_every": 5}
    cells = {(*name, seed): method for name, method in METHODS.items() for seed in range(seeds)}
    paths = ensure([
        plain | method | {"seed": seed, "out": runs / f"{i}-{seed}"}
        for i, ((_, _, seed), method) in enumerate(cells.items())
    ])
    draw(paths, list(cells), LOSSES, out)


if __name__ == "__main__":
    typer.run(main)
