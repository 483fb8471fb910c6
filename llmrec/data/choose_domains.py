"""Step: some of the domains kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llmrec.data.errors import DataError
from llmrec.data.interactions import Interactions


def keep_domains(state: Interactions, domains: Sequence[str]) -> Interactions:
    """Keep the items of some domains and their interactions.

    Raises:
        DataError: a domain that the items table does not have, or one without interactions.
    """
    names = state.domain_names
    unknown = [name for name in domains if name not in names]
    if unknown:
        raise DataError(f"no domain '{unknown[0]}' in the data", advice=f"It has {', '.join(names)}")
    kept = state.keep(items=np.isin(state.domain_codes, [names.index(name) for name in domains]))
    if kept.events.is_empty():
        raise DataError(f"no interactions in the domains {', '.join(domains)}")
    return kept
