"""The run directory: written once, line by line, and read back as tidy frames."""

from geffect.record.frames import read, read_published, read_support
from geffect.record.ledger import read_ledger
from geffect.record.lines import as_written, check_format, read_config, read_environment, read_lines, read_steps
from geffect.record.localisation import MASKS, RECIPE, check_localised, read_localisation, write_localisation
from geffect.record.resuming import (
    check_lines,
    check_same_data,
    check_same_start,
    check_unfinished,
    cut_back,
    last_checkpoint,
    recorded_prompts,
    steps_of,
)
from geffect.record.spread import read_standard_errors
from geffect.record.tokens import read_points, read_tokens
from geffect.record.writing import (
    CONFIG,
    DONE,
    ENVIRONMENT,
    FORMAT,
    METRICS,
    POINTS,
    STEPS,
    TOKENS,
    RunDirectory,
    layout_to_json,
    refuse_existing,
)

__all__ = [
    "CONFIG",
    "DONE",
    "ENVIRONMENT",
    "FORMAT",
    "MASKS",
    "METRICS",
    "POINTS",
    "RECIPE",
    "STEPS",
    "TOKENS",
    "RunDirectory",
    "as_written",
    "check_format",
    "check_lines",
    "check_localised",
    "check_same_data",
    "check_same_start",
    "check_unfinished",
    "cut_back",
    "last_checkpoint",
    "layout_to_json",
    "read",
    "read_config",
    "read_environment",
    "read_ledger",
    "read_lines",
    "read_localisation",
    "read_points",
    "read_published",
    "read_standard_errors",
    "read_steps",
    "read_support",
    "read_tokens",
    "recorded_prompts",
    "refuse_existing",
    "steps_of",
    "write_localisation",
]  # fmt: skip
