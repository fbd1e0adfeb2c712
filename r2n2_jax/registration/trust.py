"""How far a registration can be trusted, in a word: from the doubt about it, a number."""

import numpy as np

GOOD, UNCERTAIN, FAILED = STATUSES = ("good", "uncertain", "failed")

# Doubts of so much and more, see ``ops.local_contrast.disagreement``: ``python -m benchmarks.statuses`` counts the errors.
UNCERTAIN_FROM = 0.0175
_FAILED_FROM = 0.08


def statuses(doubt: np.ndarray) -> np.ndarray:
    """Of doubts ``[...]``, 0 where there is none, the ``STATUSES`` ``[...]``; what is not a number has failed."""
    return np.array(STATUSES)[np.digitize(doubt, (UNCERTAIN_FROM, _FAILED_FROM))]
