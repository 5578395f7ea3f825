"""Finding: a hazard that is no level. Declared once with its explanation and remedy, found per target."""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import Literal, NamedTuple

from agent.metric import label

Severity = Literal["info", "warning", "critical"]


@dataclass(frozen=True, slots=True, eq=False)
class Finding:
    """A declaration: `id` is lower case with dashes; `explanation` is one sentence; `remedy` is what a person may run.

    Both texts may hold `{fields}` that are filled when it is found. Remedies are printed, never run.
    """

    id: str
    severity: Severity
    explanation: str
    remedy: str

    def __call__(self, target: str, **fields: object) -> Found:
        """Return this finding for one target, with the fields of its two texts."""
        return Found(
            self,
            target,
            self.explanation.format(target=target, **fields),
            self.remedy.format(target=target, **fields),
        )

    @property
    def alert(self) -> str:
        """The name of the alert that tells it, together with all others of its severity."""
        return f"UllageFinding{self.severity.title()}"

    def fields(self) -> set[str]:
        """Return the names of the fields in both texts, `target` left out."""
        texts = self.explanation, self.remedy
        names = {name for text in texts for _, name, _, _ in string.Formatter().parse(text) if name}
        return names - {"target"}


class Found(NamedTuple):
    """A finding that holds now."""

    finding: Finding
    target: str
    explanation: str
    remedy: str

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from all others of its collector: its id and its target, as the labels of `ullage_finding`."""
        return self.finding.id, label(self.target)
