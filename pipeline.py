"""The whole of it, in order: each line below is a command you can run yourself.

    python pipeline.py                       # CPU preset, about 20 minutes on 2 cores
    python pipeline.py --preset smoke        # a minute, to see that everything runs

It prints every command before it runs it, skips what is done (OUT/pipeline.json remembers), and stops at the first failure;
run it again to go on. It ends with the table of results and with transcripts. Options are passed on to every step.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from minicai.common import UserError, main, parser, setup, write_json

STEPS = [  # name, command, what it leaves behind
    ("train_base", "train_base.py", "base.pt"),
    ("revise", "revise.py", "revisions.jsonl"),
    ("train_sft", "train_sft.py", "sft.pt"),
]


def run(script: str, options: list[str]) -> float:
    """Run one step and return its seconds. Raises UserError when it fails."""
    command = [sys.executable, str(Path(__file__).with_name(script)), *options]
    print(f"\n$ python {script} {shlex.join(options)}", flush=True)
    began = time.time()
    # Waiting threads that spin lose more than they gain on a machine that also does something else.
    code = subprocess.run(
        command, env=os.environ | {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "passive")}
    ).returncode
    if code:
        raise UserError(f"{script} stopped with exit code {code}; mend what it says above and run pipeline.py again")
    return time.time() - began


def pipeline():
    p = parser(__doc__)
    args = setup(p)
    options = ["--preset", args.preset, "--out", str(args.out), "--seed", str(args.seed), "--device", args.device,
               "--world", str(args.world)]  # fmt: skip
    record = args.out / "pipeline.json"
    seconds = json.loads(record.read_text()) if record.exists() else {}
    for name, script, artifact in STEPS:
        if name in seconds and (args.out / artifact).exists():
            print(f"{name}: done before, in {seconds[name] / 60:.1f} minutes")
            continue
        seconds[name] = round(run(script, options), 1)
        write_json(record, seconds)
    seconds["evaluate"] = round(run("evaluate.py", options), 1)
    write_json(record, seconds)
    print(
        "minutes: "
        + ", ".join(f"{name} {s / 60:.1f}" for name, s in seconds.items())
        + f"; together {sum(seconds.values()) / 60:.1f}"
    )


if __name__ == "__main__":
    main(pipeline)
