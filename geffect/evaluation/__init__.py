"""Evaluate a model, part by part: one number a row and metric, kept by content, and their means."""

from geffect.evaluation.reading import (
    EXAMPLES,
    read_evaluation,
    read_reference,
    rows_by_metric,
    summary,
    write_texts,
)
from geffect.evaluation.running import evaluated, rows_of, tasks_of, view_of

__all__ = [
    "EXAMPLES", "evaluated", "read_evaluation", "read_reference", "rows_by_metric", "rows_of", "summary", "tasks_of",
    "view_of", "write_texts",
]  # fmt: skip
