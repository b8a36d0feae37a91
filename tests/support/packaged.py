"""What is released: the wheel, geffect run from it (``make check-wheel``), every extra (``make check-extras``)."""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import zipfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FILES = (path.relative_to(ROOT).as_posix() for path in (ROOT / "geffect").rglob("*") if path.is_file())
NEEDED = sorted(name for name in FILES if "__pycache__" not in name)
FOREIGN = re.compile(r"(^|/)(tests?|analysis|figures|notebooks|docs|runs|__pycache__|\.\w+)/|\.(pyc|ipynb|so)$")
LARGEST = 8_000_000  # bytes of either file; the two built-in models' weights are most of it
TOOLS = ("pytest", "pytest-timeout", "hypothesis")
PROBES = {  # extra → what it brings, and its smallest test
    "parquet": ("pyarrow", ["tests/data/test_completions.py", "-k", "parquet"]),
    "gguf": ("gguf", ["tests/models/test_models.py", "-k", "broken_gguf"]),
    "hub": ("datasets", ["tests/data/test_hub.py", "-k", "default_configuration"]),
    "lm-eval": ("lm_eval", ["tests/evaluation/test_suites.py", "-k", "of_the_harness"]),
    "torchjd": ("torchjd", ["tests/rectifiers/test_torchjd.py"]),
    "notebooks": ("jupyterlab, nbclient", ["tests/analysis/test_notebooks.py", "-k", "afresh and records"]),
    "docs": ("sphinx, furo, myst_parser", ["tests/test_docs.py", "-k", "llms"]),
    "dev": ("pytest, mypy, trl", ["tests/test_workshop.py"]),
}


def faults(names: Iterable[str]) -> list[str]:
    """What a distribution lacks, and what does not belong in it; its files by path, without its folder."""
    names = list(names)
    missing = [f"{each} is missing" for each in NEEDED if each not in names]
    return missing + [f"{name} does not belong there" for name in names if FOREIGN.search(name)]


def build(folder: Path) -> Path:
    """Build both files and look into them; the wheel's path."""
    subprocess.run([sys.executable, "-m", "build", "--outdir", folder, ROOT], check=True, stdout=subprocess.DEVNULL)
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    for path, files in ((wheel, zipfile.ZipFile(wheel).namelist()), (source, names)):
        print(f"{path.name}: {len(files)} files, {path.stat().st_size / 1e6:.1f} MB", flush=True)
        wrong = faults(files) + ([f"{path.name} is too large"] if path.stat().st_size > LARGEST else [])
        if wrong:
            raise SystemExit("\n".join(wrong))
    return wheel


def check_wheel(work: Path) -> None:
    """Install the wheel into a bare environment, and run the demo from it in an empty folder."""
    started = time.monotonic()
    wheel = build(work / "dist")
    print(f"built: {time.monotonic() - started:.0f} s", flush=True)
    bare, empty = work / "bare", work / "empty"
    empty.mkdir()
    subprocess.run([sys.executable, "-m", "venv", bare], check=True)
    constraints = str(ROOT / "constraints.txt")
    install = [str(bare / "bin" / "pip"), "install", "--quiet", "--no-compile", "--constraint", constraints, str(wheel)]
    subprocess.run(install, check=True)
    print(f"installed: {time.monotonic() - started:.0f} s", flush=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    for arguments in (["--version"], ["--help"], ["demo"]):
        command = [str(bare / "bin" / "geffect"), *arguments]
        said = subprocess.run(command, cwd=empty, env=environment, check=True, text=True, stdout=subprocess.PIPE).stdout
        print(
            f"geffect {' '.join(arguments)}: {len(said.splitlines())} lines, {time.monotonic() - started:.0f} s",
            flush=True,
        )
        if arguments == ["--version"] and said.split() != ["geffect", PROJECT["version"]]:
            raise SystemExit(f"The wheel is {said.strip()}, not {PROJECT['version']}")
    if not (empty / "runs" / "demo" / "figures" / "g_effect.png").exists():
        raise SystemExit("The demo drew nothing")


def check_extras(work: Path, extras: Iterable[str]) -> None:
    """Install each extra alone, import what it brings, run its smallest test; a line of a table each."""
    subprocess.run([sys.executable, "-m", "venv", work / "uv"], check=True)
    subprocess.run([work / "uv" / "bin" / "pip", "install", "--quiet", "uv"], check=True)
    failed = []
    print("| extra | packages | install, s | test, s | result |\n|---|---|---|---|---|", flush=True)
    for extra in extras:
        module, test = PROBES[extra]
        uv, venv = str(work / "uv" / "bin" / "uv"), work / extra
        started = time.monotonic()
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, str(venv)], check=True)
        python = str(venv / "bin" / "python")
        install = [uv, "pip", "install", "--quiet", "--python", python, "--constraint", str(ROOT / "constraints.txt")]
        steps = [[*install, f"{ROOT}[{extra}]", *TOOLS], [python, "-c", f"import geffect, {module}"]]
        steps.append([python, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *test])
        codes, seconds = list[int](), list[float]()
        for step in steps:
            codes.append(subprocess.run(step, cwd=ROOT, stdout=subprocess.DEVNULL, check=False).returncode)
            seconds.append(time.monotonic() - started)
        count = len(list(venv.glob("lib/python*/site-packages/*.dist-info")))
        result = "as it should be" if not any(codes) else f"exit codes {codes}"
        print(f"| {extra} | {count} | {seconds[0]:.0f} | {seconds[2] - seconds[1]:.0f} | {result} |", flush=True)
        failed += [extra] if any(codes) else []
        shutil.rmtree(venv)
    if failed:
        raise SystemExit(f"Not as they should be: {', '.join(failed)}")


def main() -> None:
    """Check the wheel, or the extras named (``--extras`` alone: all)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--extras", nargs="*", choices=PROBES)
    extras = parser.parse_args().extras
    with tempfile.TemporaryDirectory() as folder:
        check_wheel(Path(folder)) if extras is None else check_extras(Path(folder), extras or PROBES)


if __name__ == "__main__":
    main()
