"""A localization on disk: masks as safetensors with their recipe, mean gradients as inner products and magnitudes."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from geffect.core.gram import Gram
from geffect.errors import GeffectError
from geffect.io.readers import read_json
from geffect.localization.localize import Localization
from geffect.models.checksums import CHECKSUMS, check_checksums, read_checksums, write_checksums
from geffect.record.reader import as_written, check_format, read_environment, read_lines
from geffect.record.writer import DONE, ENVIRONMENT, STEPS, RunDirectory

MASKS, RECIPE = "masks", "localization.json"
READ = (RECIPE, STEPS, ENVIRONMENT)  # what a localization is read back from, beside its masks
AGAIN = "restore it from a copy, or localize again"


def write_localization(run: RunDirectory, found: Localization, recipe: Mapping[str, Any]) -> None:
    """Write a localization's lines, its masks, one file a share, and what else it is read back from.

    Args:
        run: the directory, made.
        found: the localization.
        recipe: what it was made of; it goes into every file.
    """
    path = run.path
    for place, overlap in enumerate(found.overlaps.values()):
        gram = {"gram": found.gram} if found.gram.rows and not place else {}
        run.append({"step": 0} | gram | {"overlap": overlap})
    (path / MASKS).mkdir()
    for share, splits in found.masks.items():
        bits = {f"{split}|{name}": mask for split, masks in splits.items() for name, mask in masks.items()}
        told = {"share": repr(share), "recipe": json.dumps(recipe)}
        save_file(bits, path / MASKS / f"share-{share!r}.safetensors", metadata=told)
    content = {"recipe": recipe, "examples": found.examples, "magnitudes": found.magnitudes}
    (path / RECIPE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    write_checksums(path, [*(path / name for name in READ), *(path / MASKS).iterdir()])


@as_written
def read_localization(path: Path | str) -> Localization:
    """Read a localization back.

    Args:
        path: a directory of ``geffect localize``.

    Returns:
        Masks, inner products, magnitudes and numbers of examples; the overlaps are read by `read_overlap`.

    Raises:
        GeffectError: none is there, or it cannot be read.
    """
    path = Path(path)
    content = _content(path)
    _check_unharmed(path)
    found = Localization({}, examples=content["examples"], magnitudes=content["magnitudes"])
    for file in sorted((path / MASKS).glob("share-*.safetensors")):
        found.masks[float(file.stem.removeprefix("share-"))] = _masks(file, list(found.examples), content["recipe"])
    gram, names = read_lines(path)[0].get("gram"), read_environment(path)["parameters"]["names"]
    if gram is not None:
        found.gram = Gram(tuple(gram["rows"]), dict(zip(names, map(_matrix, gram["values"]), strict=True)))
    return found


def _check_unharmed(path: Path) -> None:
    """Every file that is read is the one that was written, and there is no mask beside them."""
    check_checksums(path, remedy=AGAIN)
    known = read_checksums(path, AGAIN)
    for name in (*READ, *(f"{MASKS}/{each.name}" for each in sorted((path / MASKS).glob("share-*.safetensors")))):
        if name not in known:
            raise GeffectError(f"a checksum of {name} in {path / CHECKSUMS}", "none", AGAIN)


def check_localized(path: Path, sha256: str | None, shapes: Mapping[str, list[int]]) -> None:
    """Raise where a localization is another model's or another adapter's.

    Args:
        path: its directory.
        sha256: of the weights it is to be used with.
        shapes: trainable parameter → shape.

    Raises:
        GeffectError: what differs.
    """
    recipe, remedy = _content(path)["recipe"], "localize that model, and name it with --masks"
    names = recipe["shapes"]
    if list(names) != list(shapes) or names != dict(shapes):
        other = next((n for n in (*shapes, *names) if names.get(n) != shapes.get(n)), "their order")
        here, there = (f"{table[other]}" if other in table else "none" for table in (shapes, names))
        raise GeffectError(
            f"masks of the model's own trained parameters ({other}: {here})", f"{there} in {path}", remedy
        )
    if recipe["sha256"] != sha256:
        raise GeffectError(
            f"masks made for these weights ({str(sha256)[:12]})",
            f"those of {recipe['model']} ({str(recipe['sha256'])[:12]}) in {path}",
            remedy,
        )


def _content(path: Path) -> dict[str, Any]:
    if not (path / DONE).exists() or not (path / RECIPE).exists():
        raise GeffectError(f"a localization in {path}", "none", "make one with geffect localize")
    check_format(path)
    try:
        content: dict[str, Any] = read_json(path / RECIPE)
        if not {"recipe", "examples", "magnitudes"} <= set(content):
            raise ValueError("a key is missing")
    except (OSError, ValueError, TypeError) as error:
        raise GeffectError(f"a readable {RECIPE} in {path}", str(error), "localize again") from error
    return content


def _masks(file: Path, splits: list[str], recipe: Mapping[str, Any]) -> dict[str, dict[str, torch.Tensor]]:
    found: dict[str, dict[str, torch.Tensor]] = {split: {} for split in splits}
    try:
        with safe_open(file, "pt") as stored:
            for key in stored.keys():  # noqa: SIM118  a handle, not a mapping
                split, _, name = key.partition("|")
                found[split][name] = mask = stored.get_tensor(key)
                if mask.dtype != torch.uint8 or len(mask) != -(-math.prod(recipe["shapes"][name]) // 8):
                    raise ValueError(f"{mask.numel()} numbers of {mask.dtype} for {name}")
    except (SafetensorError, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise GeffectError(f"readable masks in {file}", reason, "localize again") from error
    return found


def _matrix(upper: list[float | None]) -> torch.Tensor:
    """A symmetric matrix from its upper triangle, line by line."""
    size = int((2 * len(upper)) ** 0.5)
    i, j = torch.triu_indices(size, size)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    matrix[i, j] = matrix[j, i] = torch.tensor([float("nan") if x is None else x for x in upper], dtype=torch.float64)
    return matrix
