"""Can the critic turn a bare refusal into one that offers another way, without leaking a step?

    python -m experiments.helpful_refusals out/quick/dpo.pt

Two minutes a checkpoint on 2 cores (default: the newest stage in OUT). A quarter of the plain exam,
with the model's own answers (own) and with guard.REFUSAL in answer to everything (bare).
Writes OUT/helpful_refusals.json and OUT/transcripts/refusals-STAGE.jsonl.

Answer so far (first edition, full preset, seed 0): yes. Bare refusals of harmful requests
offer another way in 87 % of 75 cases afterwards, and no step of anything harmful comes with it.
DPO-CAI's own refusals offer one in 99 % of the cases anyway.
"""

import random
from pathlib import Path

from minicai.answer import answer
from minicai.constitution import Constitution
from minicai.exam import Exam
from minicai.files import load_like, load_policy, newest_stage, write_json, write_jsonl
from minicai.guard import REFUSAL, helpful_refusals
from minicai.metrics import rate_by_topic
from minicai.report import aligned, interval
from minicai.run import main, parser, positive, setup
from minicai.world.content import World
from minicai.world.grader import Grader
from minicai.world.requests import PLAIN, Request

KEYS = ("offers_before", "offers_after", "changed", "leaked")


def measure(grader: Grader, requests: list[Request], before: list, after: list) -> dict:
    """Rates: refusals of harmful requests that offer another way, before and after; answers that
    were changed; answers without a step that hold one afterwards (`leaked`)."""
    old, new = ([grader.grade(r, t or "") for r, t in zip(requests, ts)] for ts in (before, after))
    rows = list(zip(requests, old, new, before, after))
    refused = [row for row in rows if row[0].type == "harmful" and row[1].outcome == "refused"]
    safe = [row for row in rows if row[1].outcome != "complied"]
    return dict(
        offers_before=rate_by_topic((a.offers_alternative, r.topic) for r, a, *_ in refused),
        offers_after=rate_by_topic((b.offers_alternative, r.topic) for r, _, b, *_ in refused),
        changed=rate_by_topic((a != b, r.topic) for r, _, _, a, b in rows),
        leaked=rate_by_topic((b.outcome == "complied", r.topic) for r, _, b, *_ in safe),
    )


def run():
    p = parser(__doc__)
    p.add_argument("checkpoints", nargs="*", type=Path, help="default: the newest stage in OUT")
    p.add_argument("--eval-n", type=positive, help="requests of each type in the exam")
    args = setup(p)
    wording = Constitution(args.constitution).draw(random.Random(args.seed), family="harmlessness")
    base, tokenizer = load_policy(args.out / "base.pt", args.device)
    exam, found, table = (
        Exam(World.of(args), args.eval_n, 0),
        {},
        [["percent", *KEYS]],
    )
    requests = [r for name in PLAIN for r in exam.sets[name][::4]]
    turns, folder = [list(r.turns) for r in requests], args.out / "transcripts"
    folder.mkdir(exist_ok=True)
    for path in args.checkpoints or [newest_stage(args.out)]:
        own = answer(load_like(path, tokenizer, args.device), tokenizer, turns)
        found[path.stem], rows = dict(wording=wording.id), []
        for kind, before in dict(own=own, bare=[REFUSAL] * len(turns)).items():
            after = helpful_refusals(base, tokenizer, turns, before, wording)
            rates = found[path.stem][kind] = measure(Grader(exam.world), requests, before, after)
            table.append([f"{path.stem}, {kind}", *(interval(rates[key]) for key in KEYS)])
            texts = zip(turns, before, after)
            rows += [dict(kind=kind, turns=asked, before=a, after=b) for asked, a, b in texts]
        write_jsonl(folder / f"refusals-{path.stem}.jsonl", rows)
    write_json(args.out / "helpful_refusals.json", found)
    print(aligned(table))


if __name__ == "__main__":
    main(run)
