"""What a person types and sees: arrow keys, the end of the input, closed streams, signals."""

import os
import select
import signal
import subprocess
import sys

import pytest

import chat
from minicai import console
from minicai.run import ROOT

ASK = "import minicai.console as c; print(repr(c.ask('> ')), repr(c.ask('> ')))"


def test_arrow_keys_edit_the_line_and_the_end_of_the_input_quits():
    pty, _ = pytest.importorskip("pty"), pytest.importorskip("readline")
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-c", ASK])
    shown, left, ctrl_d = b"", b"\x1b[D", b"\x04"

    def read_until(text: bytes):
        nonlocal shown
        while text not in shown:
            assert select.select([terminal], [], [], 30)[0], shown
            shown += os.read(terminal, 1000)

    read_until(b"> ")  # typed earlier, it would be read by another terminal mode
    os.write(terminal, b"ac" + left + b"b\r")
    read_until(b"\n> ")
    os.write(terminal, ctrl_d)
    read_until(b"'abc' '/quit'")
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize(
    "typed, line",
    [
        (" Hello \r\n", "Hello"),
        ("\ufeffHello\n", "Hello"),
        ("/exit\n", "/quit"),
        ("", "/quit"),
        (KeyboardInterrupt, "/quit"),
    ],
)
def test_a_typed_line_is_bare_and_whatever_ends_the_input_quits(monkeypatch, typed, line):
    def typing(prompt):
        if typed is KeyboardInterrupt:
            raise KeyboardInterrupt
        if not typed:
            raise EOFError
        return typed.removesuffix("\n")

    monkeypatch.setattr("builtins.input", typing)
    assert console.ask("> ") == line


def test_closed_streams_end_no_script(tmp_path):
    code = (
        "import sys, minicai.console as c; c.prepare_streams(); print('out')\n"
        "print('err', file=sys.stderr)\n"
        f"open({str(tmp_path / 'typed')!r}, 'w').write(c.ask('> '))"
    )
    for closed in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
        command = f'exec "$0" -c "$1" {closed} </dev/null' if closed[0] != "<" else None
        command = command or f'exec "$0" -c "$1" {closed}'
        done = subprocess.run(["sh", "-c", command, sys.executable, code], cwd=ROOT)
        assert done.returncode == 0 and (tmp_path / "typed").read_text() == "/quit"
        (tmp_path / "typed").unlink()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_ends_a_script_unless_it_is_ignored_as_under_nohup(name):
    number = getattr(signal, name, None) or pytest.skip(f"this system has no {name}")
    before = signal.signal(number, signal.SIG_IGN)
    try:
        console.catch_signals()
        assert signal.getsignal(number) == signal.SIG_IGN
        signal.signal(number, signal.SIG_DFL)
        console.catch_signals()
        with pytest.raises(KeyboardInterrupt if name == "SIGINT" else SystemExit) as stop:
            signal.raise_signal(number)
        assert name == "SIGINT" or stop.value.code == 128 + number
    finally:
        signal.signal(number, before)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_ctrl_c_during_the_imports_of_the_chat_shows_no_traceback(tmp_path):
    begun, torch = tmp_path / "begun", tmp_path / "torch.py"
    torch.write_text(f"import time; open({str(begun)!r}, 'w').close(); time.sleep(60)\n")
    slow = os.environ | dict(PYTHONPATH=str(tmp_path))
    command = [sys.executable, chat.__file__, "--device", "cpu"]
    process = subprocess.Popen(command, env=slow, stderr=subprocess.PIPE)
    while not begun.exists():
        assert process.poll() is None, process.stderr.read()
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30)[1] == b"" and process.returncode == -signal.SIGINT
