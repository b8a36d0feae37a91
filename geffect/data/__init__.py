"""Sets of questions and answers, or of texts: named, sliced, encoded, padded, paired."""

from geffect.data.checks import check_ids, tell_cut
from geffect.data.conversations import right_answers
from geffect.data.encode import Encoded, collate, encode_examples, encode_set, pad_id_of, token_texts, turn_end
from geffect.data.order import Meetings, Together
from geffect.data.prompts import Prompt
from geffect.data.refusals import REFUSALS, refused
from geffect.data.scoped import Domain, parse_domains
from geffect.data.sets import ChatSet, QASet, RowSet, TextSet, load_set

__all__ = [
    "REFUSALS", "ChatSet", "Domain", "Encoded", "Meetings", "Prompt", "QASet", "RowSet", "TextSet", "Together",
    "check_ids", "collate", "encode_examples", "encode_set", "load_set", "pad_id_of", "parse_domains", "refused",
    "right_answers", "tell_cut", "token_texts", "turn_end",
]  # fmt: skip
