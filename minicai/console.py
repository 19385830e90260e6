"""The console: streams of any encoding, signals that end a script, lines that a person types.

Nothing here imports torch.
"""

import os
import signal
import sys
from contextlib import suppress
from functools import cache


def prepare_streams():
    """Text that the console cannot show becomes question marks. A closed stream reads as empty."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))
        elif hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="replace")


def catch_signals():
    """SIGTERM and SIGHUP end a script as an error does, and Ctrl-C is a KeyboardInterrupt.

    A signal that is ignored stays ignored: SIGHUP under nohup, Ctrl-C in a step of the pipeline.
    """
    ends = {name: lambda number, _: sys.exit(128 + number) for name in ("SIGTERM", "SIGHUP")}
    for name, handler in (ends | {"SIGINT": signal.default_int_handler}).items():
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, handler)


@cache
def warn(text: str):
    """Say something on stderr, once."""
    print(f"WARNING: {text}", file=sys.stderr)


def ask(prompt: str) -> str:
    """The line that a person types. "/quit" for "/exit", the end of the input, and Ctrl-C."""
    with suppress(ImportError):  # arrow keys edit the line where this library is
        import readline  # noqa: F401
    try:
        line = input(prompt).strip().removeprefix("\ufeff")  # which a piped file may begin with
    except (EOFError, KeyboardInterrupt):
        print()
        return "/quit"
    return "/quit" if line == "/exit" else line
