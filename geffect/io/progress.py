"""Progress bars on a terminal, with live numbers."""

from collections.abc import Mapping
from typing import Any

from tqdm.std import tqdm

from geffect.io.terminal import blank_line, width_of

ECHO = 4  # columns left free at a bar's end: a terminal echoes Ctrl-C there as ^C
WIDE = 72  # columns from which a bar is drawn beside its numbers
FULL = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
SHORT = "{desc}{n_fmt}/{total_fmt} [{remaining}{postfix}]"


class Bar(tqdm):  # type: ignore[type-arg]
    """A progress bar on a terminal's stderr, with live numbers at its end; nothing is shown elsewhere."""

    def __init__(self, total: int, unit: str, *, label: str = "", done: int = 0, shown: bool = True) -> None:
        disable = None if shown else True
        super().__init__(total=total, initial=done, unit=unit, desc=f"{label}: " if label else None, disable=disable)

    def tell(self, numbers: Mapping[str, float | str | None], steps: int = 0) -> None:
        """Go on by some steps, and show these numbers."""
        known = {name: value for name, value in numbers.items() if value is not None}
        texts = (value if isinstance(value, str) else f"{value:.3g}" for value in known.values())
        self.set_postfix_str(", ".join(map(" ".join, zip(known, texts, strict=True))).strip(), refresh=False)
        self.update(steps)
        self.refresh()

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        """As tqdm's, in a form that fits the terminal."""
        self.dynamic_ncols: Any = _size
        self.bar_format = FULL if _size(self.fp)[0] >= WIDE else SHORT
        return super().display(msg, pos)

    def close(self) -> None:
        """As tqdm's, over what the terminal echoed."""
        if not getattr(self, "disable", True):
            self.fp.write(blank_line(width_of(self.fp)))
        super().close()


def _size(stream: Any) -> tuple[int, int | None]:
    """Columns that a bar may take."""
    return max(20, (width_of(stream) or 80) - ECHO), None
