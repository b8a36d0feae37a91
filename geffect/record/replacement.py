"""Replace a run by another one in its directory: nothing of it is lost before the new one begins.

The old run's files wait in ``.replaced`` in the directory, and are removed once the new configuration is written. Until
then every end but a kill puts them back; after a kill, the next ``--overwrite`` does.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from geffect.errors import GeffectError
from geffect.record.schema import BEGINNING, CONFIG, DONE, ENVIRONMENT, FORMAT_COMMENT, LOCK, PARTIAL, refuse_existing

REPLACED = ".replaced"
MOVED = ".moved"  # in it: every file of the old run is there
MODEL = (
    r"((adapter_|pytorch_)?model(-\d+-of-\d+)?\.safetensors(\.index\.json)?|[\w.-]*\.model|vocab\.txt|merges\.txt"
    r"|((generation_|adapter_|tokenizer_|preprocessor_|processor_)?config|tokenizer|special_tokens_map|added_tokens"
    r"|vocab|checksums)\.json|chat_template\.(jinja|json)|README\.md)"
)
STATE = r"((optimizer|scheduler)\.pt|rng_state(_\d+)?\.pth|trainer_state\.json|objective\.json|rectifier\.safetensors)"
OWN = re.compile(
    r"environment\.json|metrics\.json|localization\.json|config\.yaml|DONE|\.lock|report\.html|examples\.csv"
    rf"|(steps|tokens|points|texts)\.jsonl|(state-\d+/)?{MODEL}"
    rf"|checkpoints/(\.partial/)?checkpoint-\d+/({MODEL}|{STATE})"
    r"|gradients/step-\d+/\w+\.safetensors|masks/share-[\d.e-]+\.safetensors"
)
DRAWN = (".png", ".pdf", ".csv")  # of a plot: always the three
CARD = "library_name: peft"  # in the card that peft writes beside an adapter


def is_run(path: Path) -> bool:
    """Whether a directory holds what a verb wrote, finished or not, or holds it aside."""
    here = path / REPLACED if _is_aside(path) else path
    return path.is_dir() and not path.is_symlink() and _begins(here / CONFIG, FORMAT_COMMENT.encode())


def _is_aside(path: Path) -> bool:
    return (path / REPLACED / CONFIG).is_file() and not (path / CONFIG).exists()


def _begins(file: Path, start: bytes) -> bool:
    if not file.is_file() or file.is_symlink():
        return False
    with file.open("rb") as stream:
        return stream.read(len(start)) == start


def foreign_file(path: Path) -> Path | None:
    """The first file in a run's directory that geffect did not write; None where there is none."""
    return next((file for file in sorted(path.rglob("*")) if not _is_own(file, file.relative_to(path))), None)


def _is_own(file: Path, name: Path) -> bool:
    if file.is_symlink():
        return False
    if file.is_dir() or name.parts[0] == REPLACED or (name.name.startswith(".") and name.name.endswith(PARTIAL)):
        return True
    if name.parts[0] == "figures" and file.suffix in DRAWN:
        return all(file.with_suffix(kind).is_file() for kind in DRAWN)
    if name.name == ENVIRONMENT and len(name.parts) == 1:
        return _begins(file, BEGINNING)
    if name.name == "README.md":
        return CARD in file.read_text(encoding="utf-8", errors="replace")[:2000]
    return OWN.fullmatch(name.as_posix()) is not None


def refuse_taken(path: Path, *, overwrite: bool) -> None:
    """As `refuse_existing`; with ``overwrite`` a run may be there, and nothing but a run."""
    if not (is_run(path) and overwrite):
        try:
            return refuse_existing(path)
        except GeffectError as error:
            if not is_run(path):
                raise
            remedy = "Choose another name, or move it away; --overwrite replaces it"
            raise GeffectError(error.message, remedy=remedy) from None
    foreign = foreign_file(path)
    if foreign is not None:
        message = f"--overwrite removes runs alone, and {foreign} is no file that geffect writes in one"
        raise GeffectError(message, remedy="Move it away, or choose another --out")
    return None


def describe_run(path: Path) -> str:
    """What is replaced, in words."""
    files = [file for file in path.rglob("*") if file.is_file()]
    kind = "a finished run" if (path / DONE).exists() else "an unfinished run"
    return f"{kind} ({len(files)} files, {sum(file.stat().st_size for file in files) / 1e6:.3g} MB)"


def settle(path: Path) -> None:
    """Put back what was moved aside by a process that ended before its run began; else remove it."""
    aside = path / REPLACED
    if not aside.is_dir():
        return
    if not (path / CONFIG).exists():
        if (aside / MOVED).exists():  # else what stands beside it was about to be moved, or is back already
            for file in [each for entry in _entries(path) for each in (entry, *entry.rglob("*"))]:
                if file.is_file() and _is_own(file, file.relative_to(path)):
                    file.unlink()
            for folder in sorted(filter(Path.is_dir, path.rglob("*")), reverse=True):
                if REPLACED not in folder.relative_to(path).parts and not any(folder.iterdir()):
                    folder.rmdir()
            (aside / MOVED).unlink()
        for entry in sorted(aside.iterdir(), key=lambda entry: entry.name == CONFIG):  # last: until then it is aside
            entry.rename(path / entry.name)
    shutil.rmtree(aside)


def move_aside(path: Path) -> None:
    """Move a run's files into ``.replaced``: the configuration first, which tells that they are there."""
    aside = path / REPLACED
    aside.mkdir()
    for entry in sorted(_entries(path), key=lambda entry: entry.name != CONFIG):
        entry.rename(aside / entry.name)
    (aside / MOVED).touch()


def _entries(path: Path) -> Iterator[Path]:
    """What a directory holds beside its lock and what was moved aside."""
    return iter([entry for entry in path.iterdir() if entry.name not in (LOCK, REPLACED)])
