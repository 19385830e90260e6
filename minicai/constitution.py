"""The constitution: principles in plain words, each in several wordings, read from `constitution.json`.

A principle belongs to a family (harmlessness, honesty, respect, autonomy, necessity). A wording is a critique request, a
revision request, and a comparison for the judge. To change what the model becomes, edit a copy of the file: no code names a
principle. The families are another matter: the base has to have seen them demonstrated (world/skills.py).

A wording's id is its principle and its place in the list, and by a hash of the id one in four is held out for the exam. So write new
wordings at the end of a list: inserting or deleting one gives all behind it another id.
"""

import copy
import json
import random
from dataclasses import dataclass

from minicai.common import UserError, read_text
from minicai.world.content import held_out
from minicai.world.skills import FAMILIES


@dataclass(frozen=True)
class Wording:
    id: str  # "harm-to-others/2"
    principle: str
    family: str
    critique: str
    revision: str
    comparison: str


class Constitution:
    def __init__(self, path="constitution.json"):
        """Raises UserError for a file that is missing, is no JSON, or lacks a field."""
        try:
            value = json.loads(read_text(path))
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{error.lineno} is not valid JSON ({error.msg}); fix the line")
        principles = value.get("principles") if isinstance(value, dict) else None
        if not isinstance(principles, list):
            raise UserError(f"{path} has no list 'principles'; write {{\"principles\": [...]}}")
        self.path, self.wordings = path, []
        for principle in principles:
            try:
                if principle["family"] not in FAMILIES:
                    raise UserError(
                        f"{path}: principle {principle['id']!r} has family {principle['family']!r}; "
                        f"it must be one of {', '.join(FAMILIES)}"
                    )
                for i, w in enumerate(principle["wordings"]):
                    wording = Wording(
                        f"{principle['id']}/{i}",
                        principle["id"],
                        principle["family"],
                        w["critique"],
                        w["revision"],
                        w["comparison"],
                    )
                    if not all(isinstance(text, str) for text in vars(wording).values()):
                        raise TypeError
                    self.wordings.append(wording)
            except KeyError as error:
                raise UserError(
                    f"{path}: the principle {str(principle)[:40]}... lacks the field {error}; add it"
                )
            except TypeError:
                raise UserError(
                    f"{path}: the principle {str(principle)[:40]}... holds something else than texts; fix it"
                )
        if len({wording.id for wording in self.wordings}) < len(self.wordings):
            raise UserError(f"{path} has two principles with one id; give each its own")
        if not self.wordings:
            raise UserError(f"{path} holds no principle; write at least one")
        for family in self.families:
            if all(held_out(w.id) for w in self.wordings if w.family == family):
                raise UserError(
                    f"{path}: all wordings of the family {family} are held out for the exam; add wordings"
                )

    @property
    def principles(self) -> list[str]:
        return list(dict.fromkeys(w.principle for w in self.wordings))

    @property
    def families(self) -> list[str]:
        """In the order of skills.FAMILIES."""
        return [f for f in FAMILIES if any(w.family == f for w in self.wordings)]

    def audited(self, test: bool) -> list[str]:
        """The families that have a held-out wording (with `test`) or a seen one. Raises UserError where none has."""
        families = [
            f
            for f in self.families
            if any(w.family == f and held_out(w.id) == test for w in self.wordings)
        ]
        if not families:
            raise UserError(
                f"{self.path} has no {'held-out' if test else 'seen'} wording of a principle to audit with; add wordings"
            )
        return families

    def without(self, family: str) -> "Constitution":
        """The constitution with one family struck out. Raises UserError when nothing would be left."""
        rest = copy.copy(self)
        rest.wordings = [w for w in self.wordings if w.family != family]
        if not rest.wordings or len(rest.wordings) == len(self.wordings):
            raise UserError(
                f"--without {family}: {self.path} has no such family, or no other; families are "
                f"{', '.join(dict.fromkeys(w.family for w in self.wordings))}"
            )
        return rest

    def draw(
        self,
        rng: random.Random,
        test: bool = False,
        family: str | None = None,
        principle: str | None = None,
    ) -> Wording:
        """A random principle, then one of its wordings: seen ones, or with `test` the held-out ones."""
        pool = [
            w
            for w in self.wordings
            if held_out(w.id) == test
            and family in (None, w.family)
            and principle in (None, w.principle)
        ]
        if not pool:
            raise UserError(
                f"{self.path} has no {'held-out' if test else 'seen'} wording for {principle or family}; add wordings"
            )
        principle = rng.choice(list(dict.fromkeys(w.principle for w in pool)))
        return rng.choice([w for w in pool if w.principle == principle])
