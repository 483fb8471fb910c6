"""Names of the columns of every table in the data part, so that no other module spells them as strings."""

from __future__ import annotations


class Columns:
    """Column names of interactions, items and prepared histories."""

    USER = "user_id"
    ITEM = "item_id"
    DOMAIN = "domain"
    TITLE = "title"
    TIMESTAMP = "timestamp"
    ORDER = "order"
    RATING = "rating"

    HISTORY = "history"
    TARGET = "target"
    TRAIN_COUNT = "train_count"
