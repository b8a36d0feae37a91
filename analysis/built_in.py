"""Fit the built-in models whose weights the package holds, and write those: ``python -m analysis.built_in``."""

import argparse
import tempfile
from pathlib import Path

from geffect.api import fit_builtin, load_model
from geffect.models.builtin import SHIPPED, save_fitted, weights_file


def main(arguments: list[str] | None = None) -> None:
    """Fit each model with the recipe in the package; a minute and a half each on one thread."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=SHIPPED, nargs="*", default=SHIPPED)
    for name in parser.parse_args(arguments).model:
        with tempfile.TemporaryDirectory() as folder:
            fit_builtin(name, Path(folder))
            fitted = load_model(folder, device="cpu")
            weights_file(name).parent.mkdir(exist_ok=True)
            save_fitted(fitted.model, fitted.tokenizer, name, weights_file(name))
            print(weights_file(name), Path(folder, "metrics.json").read_text(encoding="utf-8"), sep="\n")


if __name__ == "__main__":
    main()
