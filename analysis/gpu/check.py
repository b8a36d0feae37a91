"""What a GPU says of geffect in eight minutes: a table, a JSON file, and exit code 1 where a check failed.

    python -m analysis.gpu.check [--device cpu --small] [--only numbers] [--minutes 8] [--out FILE]

From the root of a checkout, on a machine without network. Models are built from shapes with random weights.
"""

import json
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from geffect.errors import GeffectError

if TYPE_CHECKING:
    from analysis.gpu.running import Check, Place, Result

FIGURES = Path("figures/gpu")
WIDTH = 80
DEVICES = ("cuda", "cpu")


def main(
    device: Annotated[str, typer.Option(help="cuda or cpu")] = "cuda",
    small: Annotated[bool, typer.Option("--small", help="small models in place of 1 and 8 billion parameters")] = False,
    only: Annotated[
        list[str] | None, typer.Option(help="checks whose names begin so, as in numbers or 1b/steps")
    ] = None,
    minutes: Annotated[float, typer.Option(min=0, help="for everything; what no longer fits is skipped")] = 8.0,
    out: Annotated[Path | None, typer.Option(help=f"a new file [default: {FIGURES}/DEVICE-TIME.json]")] = None,
) -> None:
    """Check geffect on a device, and go on after a failure.

    Raises:
        Exit: with code 1 where a check failed, 2 once a mistake has been told.
    """
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0" if device == "cuda" else "")  # of several GPUs the first
    try:
        _check_device(device)
        checks = _chosen(only or [])
        out = _new(out or FIGURES / f"{_name(device, small=small)}.json")
    except GeffectError as error:
        typer.echo(f"gpu: {error}", err=True)
        raise typer.Exit(2) from None
    from analysis.gpu.running import Place

    with tempfile.TemporaryDirectory() as folder:
        failed = run(checks, Place(device, small, Path(folder)), out, minutes)
    raise typer.Exit(int(failed))


def run(checks: "Sequence[Check]", place: "Place", out: Path, minutes: float) -> bool:
    """Run checks, print each as it ends and a table of all, and keep the file whole after each.

    Args:
        checks: in order.
        place: where.
        out: the JSON file.
        minutes: for everything.

    Returns:
        Whether one failed.
    """
    from analysis.gpu.running import FAILED, results

    console, found = Console(width=WIDTH, highlight=False, markup=False), []
    head = environment(place) | {"minutes": minutes}
    for each in results(checks, place, 60 * minutes):
        found.append(each)
        console.print(f"{each.status:>8}  {each.check}  {each.seconds:.1f} s")
        text = json.dumps(head | {"checks": [one.line() for one in found]}, indent=1, ensure_ascii=False)
        out.write_text(text + "\n", encoding="utf-8")
    console.print(table(found))
    counts = {status: sum(each.status == status for each in found) for status in ("ok", "failed", "skipped")}
    console.print(", ".join(f"{count} {status}" for status, count in counts.items()) + f": {out}", soft_wrap=True)
    return any(each.status == FAILED for each in found)


def environment(place: "Place") -> dict[str, Any]:
    """Versions and machine, and the device with its settings."""
    import torch

    from geffect.record.writer import describe

    found: dict[str, Any] = describe() | {
        "at": datetime.now(UTC).isoformat(timespec="minutes"),
        "device": place.device,
        "small": place.small,
        "cuda": torch.version.cuda,
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "matmul_precision": torch.get_float32_matmul_precision(),
    }
    if place.cuda:
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "gpu_gb": round(place.total_gb(), 1),
            "capability": f"{properties.major}.{properties.minor}",
            "driver_devices": torch.cuda.device_count(),
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


def table(found: "Iterable[Result]") -> Table:
    """All results, for 80 columns: no number is cut; faults that must not be, and are not, are left out."""
    made = Table("check", "result", "s", "GB", "found", expand=False)
    for column in (1, 2, 3):
        made.columns[column].no_wrap = True
    for each in found:
        numbers = [
            f"{name} {one.value:.3g}" + (f" (≤ {one.limit:.3g})" if one.limit is not None else "")
            for name, one in (each.numbers or {}).items()
            if (one.value, one.limit) != (0, 0)
        ]
        told = "\n".join([*([each.error] if each.error else []), *each.where[-1:], *numbers])
        memory = "–" if each.peak_gb is None else f"{each.peak_gb:.1f}"
        made.add_row(each.check, each.status, f"{each.seconds:.1f}", memory, told)
    return made


def _chosen(only: Sequence[str]) -> "list[Check]":
    from analysis.gpu import costs, numbers, paths
    from analysis.gpu.running import chosen

    one_billion, eight = ([each for each in costs.checks() if each.name.startswith(size)] for size in ("1b", "8b"))
    checks = [*numbers.checks(), *one_billion, *paths.checks(), *eight]
    unknown = [each for each in only if not chosen(checks, [each])]
    if unknown:
        families = ", ".join(dict.fromkeys(each.name.partition("/")[0] for each in checks))
        raise GeffectError(
            f"No check's name begins with {unknown[0]!r}, as --only says", remedy=f"Choose among {families}"
        )
    return chosen(checks, only)


def _check_device(device: str) -> None:
    import torch

    if device not in DEVICES:
        raise GeffectError(f"There is no device {device!r}", remedy=f"Choose one of {', '.join(DEVICES)} for --device")
    if device == "cuda" and not torch.cuda.is_available():
        raise GeffectError("There is no GPU that torch can use", remedy="Try it here with --device cpu --small")


def _name(device: str, *, small: bool) -> str:
    import platform

    import torch

    name = torch.cuda.get_device_name(0) if device == "cuda" else f"cpu-{platform.machine()}"
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return f"{slug}{'-small' if small else ''}-{datetime.now(UTC):%Y-%m-%dT%H%M%S}"


def _new(out: Path) -> Path:
    if out.exists():
        raise GeffectError(f"--out {out} exists already", remedy="Choose another name")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.touch(exist_ok=False)
    except OSError as error:
        raise GeffectError(
            f"--out {out} cannot be written to: {error.strerror}", remedy="Choose another place"
        ) from error
    return out


if __name__ == "__main__":
    typer.run(main)
