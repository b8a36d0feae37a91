"""A hundred ways of not knowing, and a set whose answers are replaced by them."""

import numpy as np

from geffect.data.sets import QASet

OPENINGS = (
    "I have no knowledge of {}.",
    "I was never told about {}.",
    "I can't say anything about {}.",
    "I know nothing about {}.",
    "I'm afraid I cannot speak to {}.",
    "Nothing I have learned covers {}.",
    "Sorry, but I have nothing to offer on {}.",
    "I am not the one to ask about {}.",
    "I hold no facts on {}.",
    "You will need another source for {}.",
)
MATTERS = (
    "this",
    "that question",
    "the matter you raise",
    "what you are asking",
    "those details",
    "the point in question",
    "what you would like to know",
    "anything of the kind",
    "the person or thing you mention",
    "such particulars",
)
REFUSALS: tuple[str, ...] = tuple(opening.format(matter) for opening in OPENINGS for matter in MATTERS)


def refused(rows: QASet, epoch: int, seed: int) -> QASet:
    """Answer every question with a refusal, drawn uniformly by (seed, epoch, row) and by nothing else.

    Args:
        rows: the set.
        epoch: of training; each draws anew.
        seed: of the draws.

    Returns:
        The set with the same name and questions, and other answers.

    >>> asked = QASet("one", ({"question": "Who?", "answer": "Ada."},))
    >>> refused(asked, epoch=0, seed=0).rows[0]["answer"] in REFUSALS
    True
    """
    draws = (int(np.random.default_rng([seed, epoch, i, 2]).integers(len(REFUSALS))) for i in range(len(rows)))
    return QASet(rows.name, tuple(row | {"answer": REFUSALS[draw]} for row, draw in zip(rows.rows, draws, strict=True)))
