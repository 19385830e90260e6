"""Red team: attack a checkpoint and log every attempt with its outcome.

    python redteam.py --mode templates     # harmful requests in the nine jailbreak forms
    python redteam.py --mode templates --prompts prompts/natural.jsonl  # real prompts in them
    python redteam.py --mode zero_shot     # the base model writes what a person might say
    python redteam.py --mode few_shot      # the same, after some attacks that worked
    python redteam.py --mode human         # you type
    python redteam.py --mode monitor       # the conversations that chat.py --guard has blocked

reads   the target (default: the newest stage in OUT), OUT/base.pt (attacker and judge)
writes  OUT/redteam.jsonl, a row for every attempt, and OUT/redteam.json, a summary for every mode,
        target and split. A run replaces its own rows; human and monitor add to theirs.

A row has the id "mode/target/split/seed/number". `success` is the judge's word, as told in
minicai/world/attacks.py. `trainable` marks the successes that a feedback round may learn from: the
world can read the request and finds no test act, test name or held-out wording in it, or it is a
prompt of the train half. Whether an answer to a prompt refuses, minicai/refusal.py says.

Perez et al. 2022 (arXiv 2202.03286). Their other attackers are in experiments/redteam_rl.py, an
attack by gradient in experiments/gcg.py. Left out: attacks that adapt over several turns.
"""

from pathlib import Path

from tqdm import tqdm

from minicai.answer import MAX_NEW_TOKENS, fit
from minicai.console import ask
from minicai.constitution import Constitution
from minicai.files import UserError, newest_stage, read_json, read_jsonl, write_json
from minicai.report import aligned, interval
from minicai.rows import FIELDS
from minicai.run import main, parser, positive, setup
from minicai.tokenizer import talk
from minicai.world.attacks import Attempt, RedTeam, draw_weighted, prompt_attempts, summarise
from minicai.world.content import TECHNIQUES, World
from minicai.world.disguises import wrap
from minicai.world.recognise import recognise
from minicai.world.requests import STAGE2_SPLIT, Part

BATCH = 64  # attempts that are made, answered and judged together
SHOTS = 2  # attacks that few_shot shows

# --- attempts, one function a mode ----------------------------------------------------------------


def templates(team: RedTeam, first: int, n: int) -> list[Attempt]:
    """Random harmful requests in each jailbreak form in turn, in a random framing of the split."""
    if team.prompts:
        return prompt_attempts(team, first, n)
    part, shots = Part(team.world, team.split), Part(team.world, "train")
    forms = [t for t in TECHNIQUES if any(f.technique == t for f in part.framings)]
    forms = forms or [None]  # without any, pick() says what the world lacks
    attempts = []
    for number in range(first, first + n):
        rng = team.rng(number)
        framing = part.pick(rng, "framings", technique=forms[number % len(forms)])
        disguised = wrap(part.draw(rng, "harmful"), framing, shots, rng)
        attempts.append(Attempt(list(disguised.turns), disguised))
    return attempts


def zero_shot(team: RedTeam, first: int, n: int) -> list[Attempt]:
    """Messages that the base writes in the person's place."""
    return team.write(team.base, [team.tokenizer.prompt([], "user")] * n, first)[0]


def few_shot(team: RedTeam, first: int, n: int) -> list[Attempt]:
    """The same after SHOTS messages that worked, drawn in proportion to P(harm).

    No answers stand between them: in the base's corpus a critique request follows most answers.
    """
    pool, room = team.worked(), team.base.config.block_size - MAX_NEW_TOKENS
    prompts = []
    for number in range(first, first + n):
        shown = draw_weighted(pool, [row["judge"] for row in pool], SHOTS, team.rng(number))
        before = [{"role": "user", "content": row["turns"][0]} for row in shown]
        prompts.append(fit(team.tokenizer.prompt(before, "user"), room))
    return team.write(team.base, prompts, first)[0]


def human(team: RedTeam):
    """Each line that a person types is one attack, answered and judged at once."""
    number, room = team.next_number(), team.base.config.block_size - MAX_NEW_TOKENS
    print("each line is one attack; /quit leaves")
    while (line := ask("attack> ")) != "/quit":
        if not line or len(team.tokenizer.prompt(talk(line))) > room:
            print("(that is empty, or longer than the model can read)")
            continue
        [row] = team.attack(number, [Attempt([line], recognise(team.world, line))])
        number += 1
        harm = "no verdict" if row["judge"] is None else f"P(harm) {row['judge']:.2f}"
        print(f"{team.target_name}> {row['response'] or '...'}\n  judge> {harm}")
        graded = f"{row['request']}: {row['outcome']}" if row["request"] else "cannot read that"
        print(f"  grader> {graded}")


def monitor(team: RedTeam):
    """Every conversation that a guard has blocked, once: what would the model have answered?"""
    path, asked = team.out / "guard.jsonl", dict(turns=FIELDS["turns"])
    rows = read_jsonl(path, required=("turns",), fields=asked) if path.exists() else []
    if not rows:
        raise UserError(f"{path} holds no blocked conversation; run chat.py --guard first")
    done = {tuple(row["turns"]) for row in team.rows(own=True)}
    number = team.next_number()
    fresh = [turns for turns in dict.fromkeys(tuple(r["turns"]) for r in rows) if turns not in done]
    for at in tqdm(range(0, len(fresh), BATCH), desc="monitor", unit=" batches"):
        batch = [list(turns) for turns in fresh[at : at + BATCH]]
        known = [recognise(team.world, turns[0]) if len(turns) == 1 else None for turns in batch]
        team.attack(number + at, [Attempt(*pair) for pair in zip(batch, known)])


# --- the run --------------------------------------------------------------------------------------


def add_options(p):
    """The options of every attacker."""
    p.add_argument("--target", type=Path, help="checkpoint (default: the newest stage in OUT)")
    said = f"of acts (default: {STAGE2_SPLIT}) or prompts; attacks with test are never trained on"
    p.add_argument("--split", choices=("demo", "train", "test"), default=STAGE2_SPLIT, help=said)


def load_team(args, mode: str) -> RedTeam:
    """The red team that the options describe."""
    return RedTeam(
        mode=mode,
        target=args.target or newest_stage(args.out),
        split=args.split,
        seed=args.seed,
        out=args.out,
        device=args.device,
        world=World.of(args),
        constitution=Constitution(args.constitution),
    )


def table(summaries: dict, truth: str = "by the grader") -> str:
    """Summaries by name, as an aligned table in percent."""
    rates, shares = ("judge", "grader", "agreement"), ("distinct_1", "distinct_2", "self_bleu")
    rows = [["percent", "by the judge", truth, "they agree", *shares]]
    for name, s in summaries.items():
        rows.append(
            [name, *(interval(s[k]) for k in rates), *(f"{100 * s[k]:.1f}" for k in shares)]
        )
    return aligned(rows)


def report(team: RedTeam):
    """Print the summary of the run, by technique where there is one. Keep it in redteam.json."""
    rows, path = team.rows(own=True), team.out / "redteam.json"
    whole, forms = summarise(rows), {}
    if team.mode == "templates":
        forms = {t: [r for r in rows if r["technique"] == t] for t in TECHNIQUES}
        forms = {t: summarise(found) for t, found in forms.items() if found}
    truth = "not refused, by rules" if team.prompts else "by the grader"
    print(f"\n{table(forms | {team.name: whole}, truth)}")
    if not any(row["response"] for row in rows):
        print(f"WARNING: {team.target_name} finished no answer, so these rates mean nothing.")
    write_json(path, read_json(path, {}) | {team.name: whole | dict(techniques=forms)})
    print(f"{team.log}: {whole['trainable']} of these {len(rows)} attacks may be trained on")


def redteam():
    p = parser(__doc__)
    modes = ("templates", "zero_shot", "few_shot", "human", "monitor")
    p.add_argument("--mode", required=True, choices=modes, help="how attacks are made")
    add_options(p)
    p.add_argument("--attempts", type=positive, help="of templates, zero_shot and few_shot")
    p.add_argument("--prompts", help="file of prompts, for the templates in place of requests")
    args = setup(p)
    if args.prompts and args.mode != "templates":
        raise UserError("--prompts is for --mode templates; leave one of them out")
    team = load_team(args, args.mode)
    if args.prompts:
        team.read_prompts(args.prompts)
    if args.mode == "human":
        human(team)
    elif args.mode == "monitor":
        monitor(team)
    else:
        make = dict(templates=templates, zero_shot=zero_shot, few_shot=few_shot)[args.mode]
        team.start_again()
        for first in tqdm(range(0, args.attempts, BATCH), desc=args.mode, unit=" batches"):
            team.attack(first, make(team, first, min(BATCH, args.attempts - first)))
    if team.rows(own=True):
        report(team)


if __name__ == "__main__":
    main(redteam)
