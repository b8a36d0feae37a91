"""Sets of questions and answers: named, sliced, encoded, padded, paired."""

from geffect.data.encode import Encoded, collate, encode_set, pad_id_of
from geffect.data.order import Pairs, PairSampler
from geffect.data.sets import QASet, load_set

__all__ = ["Encoded", "PairSampler", "Pairs", "QASet", "collate", "encode_set", "load_set", "pad_id_of"]
