"""A localization on disk: masks as safetensors, mean gradients as inner products and magnitudes, and the recipe."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from geffect.core.lots import planted_lot
from geffect.core.masks import Localization, PackedMasks, mask_count, random_masks, union_of_masks
from geffect.core.splits import of_role
from geffect.errors import GeffectError, missing_path
from geffect.io.readers import StrPath, open_regular
from geffect.models.checkpoints import CHECKSUMS, check_checksums, read_checksums, write_checksums
from geffect.record.reader import check_format, check_localization, damage_refused, first_gram, read_document
from geffect.record.schema import ENVIRONMENT, FORMAT, MASKS, RECIPE, STEPS
from geffect.record.writer import RunDirectory, replacing, write_json

READ = (RECIPE, STEPS, ENVIRONMENT)  # what a localization is read back from, beside its masks
AGAIN = "Restore it from a copy, or localize again"


def write_localization(run: RunDirectory, localization: Localization, recipe: Mapping[str, object]) -> None:
    """Write a localization's record, its masks, one file a share, and its recipe, which is also in every mask file."""
    path = run.path
    for place, overlap in enumerate(localization.overlaps.values()):
        gram = {"gram": localization.gram} if localization.gram.names and not place else {}
        run.append({"step": 0} | gram | {"overlap": overlap})
    (path / MASKS).mkdir()
    for share, splits in localization.masks.items():
        bits = {f"{split}|{name}": mask for split, masks in splits.items() for name, mask in masks.items()}
        metadata = {"geffect_format": str(FORMAT), "share": repr(share), "recipe": json.dumps(recipe)}
        with replacing(path / MASKS / f"share-{share!r}.safetensors") as file:
            save_file(bits, file, metadata=metadata)
            sort_metadata(file)
    content = {"recipe": recipe, "examples": localization.examples, "magnitudes": localization.magnitudes}
    write_json(path / RECIPE, content)
    write_checksums(path, [*(path / name for name in READ), *(path / MASKS).iterdir()])


def sort_metadata(file: Path) -> None:
    """Sort the metadata of a safetensors file by key: safetensors' own order differs from process to process."""
    with file.open("r+b") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode().ljust(size)
        if len(text) == size:
            stream.seek(8)
            stream.write(text)


@damage_refused
def read_localization(path: StrPath) -> Localization:
    """Read a localization back from a directory of ``geffect localize``.

    Returns:
        Masks, inner products, magnitudes and numbers of examples; the overlaps are read by `read_overlap`.

    Raises:
        GeffectError: none is there, or it cannot be read.
    """
    path = Path(path)
    content = _content(path)
    _check_unharmed(path)
    localization = Localization({}, examples=content["examples"], magnitudes=content["magnitudes"])
    for file in sorted((path / MASKS).glob("share-*.safetensors")):
        share = float(file.stem.removeprefix("share-"))
        localization.masks[share] = _masks(file, list(localization.examples), content["recipe"])
    localization.gram = first_gram(path) or localization.gram
    return localization


def _check_unharmed(path: Path) -> None:
    """Refuse a localization with a file that differs from the one that was written, or that was added."""
    check_checksums(path, remedy=AGAIN)
    known = read_checksums(path, AGAIN)
    for name in (*READ, *(f"{MASKS}/{file.name}" for file in sorted((path / MASKS).glob("share-*.safetensors")))):
        if name not in known:
            raise GeffectError(f"{path / CHECKSUMS} has no checksum of {name}", remedy=AGAIN)


def check_localized(path: Path, sha256: str | None, shapes: Mapping[str, list[int]]) -> None:
    """Refuse a localization of other weights (``sha256``) or of other trainable parameters (name → shape)."""
    recipe, remedy = _content(path)["recipe"], "Localize this model, and name the result with --masks"
    _check_shapes(path, recipe["shapes"], shapes, remedy)
    if recipe["sha256"] != sha256:
        raise GeffectError(
            f"The masks in {path} are of {recipe['model']} (weights {str(recipe['sha256'])[:12]}), "
            f"not of these weights ({str(sha256)[:12]})",
            remedy=remedy,
        )


def _check_shapes(path: Path, names: Mapping[str, list[int]], shapes: Mapping[str, list[int]], remedy: str) -> None:
    if list(names) != list(shapes) or names != dict(shapes):
        other = next((n for n in (*shapes, *names) if names.get(n) != shapes.get(n)), "their order")
        here, there = (f"{table[other]}" if other in table else "none" for table in (shapes, names))
        message = f"The masks in {path} are of other trained parameters than the model's ({other}: {there}, not {here})"
        raise GeffectError(message, remedy=remedy)


def read_planted(text: str, shapes: Mapping[str, list[int]]) -> PackedMasks:
    """The entries that ``--only-mask`` trains, and that ``--truth`` looks for.

    Args:
        text: ``random:SEED:SHARE``, entries of each tensor drawn by lot, or one of a localization's mask files, whose
            forget masks are joined.
        shapes: trainable parameter → shape, of the model.

    Returns:
        Parameter → packed mask; empty ones may be missing.

    Raises:
        GeffectError: the file cannot be read, holds no mask of a forget split, or is of other parameters.
    """
    lot = planted_lot(text)
    if lot is not None:
        seed, share = lot
        return random_masks(shapes, share, seed)
    file = Path(text)
    recipe, splits = _metadata(file)
    _check_shapes(file, recipe["shapes"], shapes, "Name masks of this model, or random:SEED:SHARE")
    masks = union_of_masks(of_role(_masks(file, splits, recipe), "forget"))
    if not any(map(mask_count, masks.values())):
        raise GeffectError(f"{file} holds no mask of a forget split", remedy="Name another file, or random:SEED:SHARE")
    return masks


def _metadata(file: Path) -> tuple[dict[str, Any], list[str]]:
    """The recipe in a mask file, and its splits."""
    try:
        with open_regular(file), safe_open(file, "pt") as stored:
            recipe = json.loads((stored.metadata() or {})["recipe"])
            splits = {key.partition("|")[0] for key in stored.keys()}  # noqa: SIM118  a handle, not a mapping
            return {"shapes": dict(recipe["shapes"])}, sorted(splits)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        remedy = missing_path(file, "Name a file such as masks/share-0.1.safetensors of geffect localize")
        raise GeffectError(f"{file} is no file of masks", remedy=remedy) from error


def _content(path: Path) -> dict[str, Any]:
    check_localization(path)
    check_format(path)
    content = read_document(path / RECIPE)
    if not {"recipe", "examples", "magnitudes"} <= set(content):
        raise GeffectError(f"{path / RECIPE} lacks a key", remedy=AGAIN)
    return content


def _masks(file: Path, splits: list[str], recipe: Mapping[str, Any]) -> dict[str, dict[str, torch.Tensor]]:
    masks: dict[str, dict[str, torch.Tensor]] = {split: {} for split in splits}
    try:
        with safe_open(file, "pt") as stored:
            written = (stored.metadata() or {}).get("geffect_format")
            if written != str(FORMAT):
                raise ValueError(f"format {written}; this geffect reads format {FORMAT}")
            for key in stored.keys():  # noqa: SIM118  a handle, not a mapping
                split, _, name = key.partition("|")
                masks[split][name] = mask = stored.get_tensor(key)
                if mask.dtype != torch.uint8 or len(mask) != -(-math.prod(recipe["shapes"][name]) // 8):
                    raise ValueError(f"{mask.numel()} numbers of {mask.dtype} for {name}")
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0]
        raise GeffectError(f"{file} cannot be read: {reason}", remedy=AGAIN) from error
    return masks
