"""The constitution: principles in plain words, read from `constitution.json`.

A principle belongs to a family and has several wordings. A wording is three texts: a critique
request, a revision request, and a comparison for the judge. To change what the model becomes, edit
a copy of the file; no code names a principle. A new family needs demonstrations too: docs/family.md
adds one.

The id of a wording is its principle and its place in the list ("harm-to-others/2"). A hash of the
id holds out one wording in four for the exam, give or take chance. Add new wordings at the end of
a list: an insertion would give all wordings behind it new ids.
"""

import copy
import random
from dataclasses import dataclass

from minicai.files import UserError, parse_json, read_text
from minicai.splits import held_out

FAMILIES = {  # family -> what a critique says its principles are about
    "harmlessness": "harm",
    "honesty": "honesty",
    "respect": "insults",
    "autonomy": "preaching",
    "necessity": "needless refusals",
}


@dataclass(frozen=True)
class Wording:
    id: str
    principle: str
    family: str
    critique: str
    revision: str
    comparison: str


class Constitution:
    def __init__(self, path="constitution.json"):
        """Raises UserError for a file that is missing, is no JSON, or lacks a field."""
        value = parse_json(read_text(path), str(path))
        principles = value.get("principles") if isinstance(value, dict) else None
        if not isinstance(principles, list) or not principles:
            raise UserError(f'{path} has no list of principles; write {{"principles": [...]}}')
        self.path, self.wordings = path, []
        for principle in principles:
            self.wordings += self._read(principle)
        if len({w.id for w in self.wordings}) < len(self.wordings):
            raise UserError(f"{path} has two principles with one id; give each its own")
        for family in self.families:
            if all(held_out(w.id) for w in self.wordings if w.family == family):
                raise UserError(f"{path}: all wordings of {family} are held out; add wordings")

    def _read(self, principle) -> list[Wording]:
        where = f"{self.path}: the principle {str(principle)[:40]}..."
        try:
            id, family, found = principle["id"], principle["family"], []
            for i, w in enumerate(principle["wordings"]):
                texts = w["critique"], w["revision"], w["comparison"]
                found.append(Wording(f"{id}/{i}", id, family, *texts))
        except KeyError as error:
            raise UserError(f"{where} lacks the field {error}; add it")
        except TypeError:
            raise UserError(f"{where} is not built like the others; fix it")
        if family not in list(FAMILIES):  # the file may hold a list there, which has no hash
            raise UserError(f"{where} has the family {family!r}, not one of {', '.join(FAMILIES)}")
        if not found or not all(isinstance(t, str) for w in found for t in vars(w).values()):
            raise UserError(f"{where} has no wording, or one that is not text; fix it")
        return found

    @property
    def families(self) -> list[str]:
        """The families that the constitution has, in the order of FAMILIES."""
        return [f for f in FAMILIES if any(w.family == f for w in self.wordings)]

    def audited(self, test: bool) -> list[str]:
        """The families that have a held-out wording (with `test`) or a seen one."""
        families = [f for f in self.families if self._wordings(test, f)]
        if not families:
            kind = "held-out" if test else "seen"
            raise UserError(f"{self.path} has no {kind} wording to audit with; add wordings")
        return families

    def without(self, family: str) -> "Constitution":
        """The constitution with one family struck out."""
        rest = copy.copy(self)
        rest.wordings = [w for w in self.wordings if w.family != family]
        if not rest.wordings or len(rest.wordings) == len(self.wordings):
            names = ", ".join(self.families)
            raise UserError(
                f"--without {family}: {self.path} has {names}; name one, and leave at least one"
            )
        return rest

    def _wordings(self, test: bool, family: str | None) -> list[Wording]:
        return [w for w in self.wordings if held_out(w.id) == test and family in (None, w.family)]

    def draw(self, rng: random.Random, test: bool = False, family: str | None = None) -> Wording:
        """A random principle, then one of its wordings: a seen one, or with `test` a held-out one.

        Raises UserError when the constitution has none of that family.
        """
        pool = self._wordings(test, family)
        if not pool:
            kind = "held-out" if test else "seen"
            known = f"; its families are {', '.join(self.families)}" if family else ""
            raise UserError(
                f"{self.path} has no {kind} wording of {family or 'any family'}; add some{known}"
            )
        principle = rng.choice(list(dict.fromkeys(w.principle for w in pool)))
        return rng.choice([w for w in pool if w.principle == principle])
