"""Sets of questions and answers, or of texts: named, sliced, encoded, padded, paired."""
