import numpy as np
import pytest

from llmrec.evaluation.groups import HISTORY_GROUPS, POPULARITY_GROUPS, history_codes, popularity_codes
from llmrec.evaluation.histories import Histories


def test_popularity_borders():
    codes = popularity_codes(np.array([0, 1, 5, 6, 20, 21, 1000]))
    assert [POPULARITY_GROUPS[code] for code in codes] == ["0", "1-5", "1-5", "6-20", "6-20", ">20", ">20"]


def test_history_groups():
    domain_codes = np.array([0, 0, 1, 1])
    histories = Histories.of([[0, 1], [0, 2], [2, 3], [3]])
    targets = np.array([0, 1, 0, 2])
    codes = history_codes(histories, targets, domain_codes, np.array([0, 1, 2, 3]))
    assert [HISTORY_GROUPS[code] for code in codes] == [
        "target domain only",
        "target domain and others",
        "other domains only",
        "target domain only",
    ]
    assert history_codes(histories, targets, domain_codes, np.array([2, 1])).tolist() == [2, 1]


def test_empty_history_is_refused():
    with pytest.raises(ValueError, match="user row 1: the history is empty"):
        history_codes(Histories.of([[0], []]), np.array([0, 0]), np.array([0]), np.array([0, 1]))
