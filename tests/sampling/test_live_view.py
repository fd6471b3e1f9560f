"""Text on the screen while it is written."""

import io

import torch

from tdlm_fast.data.tokenizer import Bytes
from tdlm_fast.sampling import live_view


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_watch_draws_in_place(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "10")
    monkeypatch.setenv("LINES", "5")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    screen = live_view.Screen(Bytes(), 257, terminal, 0.0)
    screen(torch.tensor([[*b"abc", 257, 257]]))
    assert terminal.getvalue() == f"step 1\nabc{live_view.DIM}{live_view.BLOCK * 2}{live_view.OFF}\n"
    terminal.truncate(0), terminal.seek(0)
    screen(torch.tensor([[*b"abc", 27, 257]]))  # an escape character must not reach the terminal
    assert terminal.getvalue() == (
        f"\x1b[2F\x1b[Jstep 2\nabc{live_view.NEW}·{live_view.OFF}{live_view.DIM}{live_view.BLOCK}{live_view.OFF}\n"
    )  # fmt: skip
    terminal.truncate(0), terminal.seek(0)
    screen(torch.tensor([[*b"0123456789" * 20]]))  # more than fits: the first lines, so that it can be removed again
    assert terminal.getvalue().count("\n") == 4 == screen.height
    screen.close()
    assert terminal.getvalue().endswith("\x1b[4F\x1b[J")
    shown = live_view.Screen(Bytes(), 257, Terminal(), 0.05)
    shown(torch.tensor([[65]]))
    assert shown.spent >= 0.05
    monkeypatch.setenv("NO_COLOR", "1")
    plain = Terminal()
    live_view.Screen(Bytes(), 257, plain, 0.0)(torch.tensor([[257, 65]]))
    assert plain.getvalue() == f"step 1\n{live_view.BLOCK}A\n"
    monkeypatch.setenv("TERM", "dumb")
    assert not live_view.Screen(Bytes(), 257, Terminal()).live


def test_watch_marks_what_the_last_step_wrote_in_lines_shorter_than_the_terminal(monkeypatch):
    for name, value in (("TERM", "xterm"), ("COLUMNS", "5"), ("LINES", "40")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    screen = live_view.Screen(Bytes(), 257, terminal, 0.0)
    for ids in ([b"abc", b"de", b"f"], [b"abc", b"de", b"g"]), ([b"abc", b"xy", b"f"], [b"abc", b"de", b"g"]):
        screen(torch.tensor([[*b"".join(row)] for row in ids]))
    screen(torch.tensor([[*b"abcxyz"], [*b"abcdeg"]]))
    shown = terminal.getvalue().rpartition("\x1b[J")[2]  # the last of three steps; a full line would wrap
    assert shown == f"step 3\ntext 1\nabcx\ny{live_view.NEW}z{live_view.OFF}\ntext 2\nabcd\neg\n"
    screen.close()
    ended = terminal.getvalue()
    screen.close()  # there is nothing left to remove
    assert terminal.getvalue() == ended


def test_lines_are_as_wide_as_the_terminal():
    assert live_view.wrapped([("", "abcdef")], 4, True) == ["abcd", "ef"]
    assert live_view.wrapped([("", "日本語")], 4, True) == ["日本", "語"]  # two columns each
    assert live_view.wrapped([("", "ＡＢＣ")], 4, True) == ["ＡＢ", "Ｃ"]
    assert live_view.wrapped([("", "e\u0301" * 5)], 4, True) == ["e\u0301" * 4, "e\u0301"]  # accents take none
    assert live_view.wrapped([("", "ab\ncd")], 4, True) == ["ab", "cd"]
    styled = live_view.wrapped([(live_view.NEW, "abcde")], 4, True)
    assert styled == [f"{live_view.NEW}abcd{live_view.OFF}", f"{live_view.NEW}e{live_view.OFF}"]
