"""What a ranking is measured against: which candidates a user's target competes with."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

SEED = 2023


@dataclass(frozen=True)
class Protocol:
    """One way to rank a target.

    Attributes:
        name: name in reports.
        candidates: "sampled" (items drawn from the target's domain), "domain" (all of the target's domain) or
            "catalogue" (all items).
        n_negatives: items drawn beside the target; only for "sampled".
        exclude_target: whether the target may not be drawn again; only for "sampled" (elsewhere it is one
            candidate anyway).
        mask_seen: whether items of the user's history are no candidates. The target always stays one, also
            where the user has had it before.
        seed: of the draws; each user's draw depends on this and the user's row number alone.
    """

    name: str
    candidates: Literal["sampled", "domain", "catalogue"]
    n_negatives: int | None = None
    exclude_target: bool = True
    mask_seen: bool = True
    seed: int = SEED

    def __post_init__(self) -> None:
        if self.candidates not in ("sampled", "domain", "catalogue"):
            raise ValueError(f"protocol {self.name!r}: candidates must be sampled, domain or catalogue")
        if (self.candidates == "sampled") != (self.n_negatives is not None):
            raise ValueError(f"protocol {self.name!r}: n_negatives belongs to sampled candidates, and only to them")
        if self.n_negatives is not None and self.n_negatives < 1:
            raise ValueError(f"protocol {self.name!r}: n_negatives must be at least 1, got {self.n_negatives}")

    @property
    def description(self) -> str:
        """One sentence for tables and reports."""
        if self.candidates == "sampled":
            kind = f"the target and {self.n_negatives:,} items drawn without replacement from its domain"
            if self.exclude_target and self.mask_seen:
                return f"{kind}, never the target again nor an item of the user's history"
            if self.exclude_target:
                return f"{kind}, never the target again"
            if self.mask_seen:
                return f"{kind}, never an item of the user's history"
            return f"{kind}, which may hold the target again and items of the user's history"
        kind = "all items" if self.candidates == "catalogue" else "all items of the target's domain"
        return f"{kind}, {'without' if self.mask_seen else 'with'} those of the user's history"

    def to_dict(self) -> dict[str, Any]:
        """The fields and the description, for results.json."""
        fields = asdict(self)
        if self.candidates != "sampled":
            # Nothing is drawn, so a seed or the rule about drawing the target would say nothing.
            del fields["seed"], fields["exclude_target"]
        return {**fields, "description": self.description}


PRESETS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol("sampled", "sampled", n_negatives=1000),
        Protocol("sampled-paper", "sampled", n_negatives=1000, exclude_target=False, mask_seen=False),
        Protocol("full", "catalogue"),
        Protocol("full-unmasked", "catalogue", mask_seen=False),
        Protocol("domain", "domain"),
        Protocol("domain-unmasked", "domain", mask_seen=False),
    )
}


def get_protocol(protocol: str | Protocol, *, seed: int | None = None) -> Protocol:
    """A preset by its name, or the protocol itself; `seed` replaces its seed.

    Raises:
        ValueError: no preset has this name.
    """
    if isinstance(protocol, str):
        if protocol not in PRESETS:
            raise ValueError(f"unknown protocol {protocol!r}: choose among {', '.join(PRESETS)}")
        protocol = PRESETS[protocol]
    return protocol if seed is None else replace(protocol, seed=seed)
