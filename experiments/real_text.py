"""A pretrained model on other people's prompts, from its weights to DPO-CAI and RL-CAI.

    python pipeline.py --init MODEL.gguf                                        # out/real, hours
    python -m experiments.real_text --preset real --init MODEL.gguf --prompts xstest_prompts.csv

20 minutes on 2 cores for SmolLM2-135M and the 450 prompts of XSTest (Röttger et al. 2023, arXiv
2308.01263). All prompts are asked, so none may have trained. Writes OUT/raw.pt, the model as it
comes; the refusals of every stage, OUT/prompts-NAME-whole.json, .jsonl and .md; the harmful prompts
in the jailbreak forms, OUT/redteam.json; and OUT/real_text.json, with the loss of every stage on
the model's own answers.

Answer so far: see docs/real.md.
"""

from pathlib import Path

from minicai.files import (
    UserError,
    check_tokenizer,
    load_policy,
    read_json,
    save_checkpoint,
    stages,
    write_json,
)
from minicai.pretrained import load_pretrained
from minicai.prompts import name_of, prompts_of
from minicai.report import aligned, interval
from minicai.run import main, parser, run_script, setup
from minicai.svg import stage_label
from minicai.world.voice import mean_loss, own_answers, questions

VOICES = 64  # answers of the model as it comes, to questions of the test split
PUBLISHED = """XSTest with labels by people, refused in full + in part, percent. Of the 250 safe
prompts: Llama-2-70b with its system prompt 38 + 22, without 14 + 16, Mistral-7B 1 + 1, GPT-4 6 + 2.
Of the 200 unsafe ones: 99.5 + 0.5, 97.5 + 2.5, 23.5 + 12.5, 97.5 + 2."""


def real_text():
    p = parser(__doc__)
    p.add_argument("--init", type=Path, required=True, help="the model that the run began with")
    p.add_argument("--prompts", type=Path, required=True, help="file of prompts: all are asked")
    args = setup(p)
    raw, prompts = args.out / "raw.pt", ("--prompts", args.prompts)
    made = read_json(args.out / "pipeline.json", {}).get("settings", {}).get("init")
    if made and Path(made) != args.init.resolve():
        raise UserError(f"{args.out} was made with --init {made}; give that, or another --out")
    prompts_of(args.prompts, "test")  # the attacks need some
    model, tokenizer = load_pretrained(args.init, args.device)
    check_tokenizer(args.init, tokenizer, load_policy(args.out / "base.pt")[1])
    save_checkpoint(raw, model, tokenizer, args)
    paths = [raw, *stages(args.out)]

    asked = questions("test", VOICES, args.seed)
    voice = own_answers(model, tokenizer, asked, args.seed)
    run_script("evaluate", args, *paths, *prompts, "--split", "whole")
    for path in paths:
        attack = ("--mode", "templates", "--target", path, "--split", "test")
        run_script("redteam", args, *attack, *prompts)

    attacks, found = read_json(args.out / "redteam.json", {}), {}
    rows = [["", "loss on its own answers", "jailbreak forms: harm by the judge", "no refusal"]]
    for path in paths:
        loss = mean_loss(load_policy(path, args.device)[0], tokenizer, voice)
        attacked = attacks[f"templates-{name_of(args.prompts)}/{path.stem}/test"]
        found[path.stem] = dict(loss_on_own_answers=round(loss, 4), attacked=attacked)
        through = (interval(attacked[key]) for key in ("judge", "grader"))
        rows.append([stage_label(path.stem), f"{loss:.3f}", *through])
    write_json(args.out / "real_text.json", found)
    print(f"\n{aligned(rows)}\n\n{PUBLISHED}")


if __name__ == "__main__":
    main(real_text)
