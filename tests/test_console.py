"""What people see: colour and bars on a terminal, plain lines in a log."""

import io

import pytest
from tqdm import tqdm

from k400tiny_lib import console


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def first_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "RANK"):
        monkeypatch.delenv(name, raising=False)


def say_all() -> None:
    console.say("train", "started")
    console.say_result("top-1 50.0 %\nmore")
    console.warn("slow")
    console.complain("lr", "is 0")
    console.complain("", "train: lr: is 0")


PLAIN = ["train: started", "top-1 50.0 %", "more"], ["warning: slow", "lr: is 0", "train: lr: is 0"]


def test_a_log_has_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    say_all()
    printed = capsys.readouterr()
    assert (printed.out.splitlines(), printed.err.splitlines()) == PLAIN


@pytest.mark.parametrize("no_color", ["", "1"])
def test_a_terminal_has_colours_unless_they_are_not_wanted(
    monkeypatch: pytest.MonkeyPatch, no_color: str
) -> None:
    out, err = Terminal(), Terminal()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)
    monkeypatch.setenv("NO_COLOR", no_color)
    say_all()
    lines = out.getvalue().splitlines(), err.getvalue().splitlines()
    if no_color:
        assert lines == PLAIN
        return
    assert lines[0] == ["\033[1mtrain:\033[0m started", "\033[32mtop-1 50.0 %\033[0m", "more"]
    assert lines[1][:2] == ["\033[33mwarning:\033[0m slow", "\033[31mlr:\033[0m is 0"]
    assert lines[1][2] == "\033[31mtrain:\033[0m lr: is 0"


@pytest.mark.parametrize(
    ("seconds", "is_terminal", "rank", "shown"),
    [
        (1, True, "0", False),
        (3, True, "0", True),
        (3, True, "1", False),
        (3, False, "0", False),
        (61, False, "0", True),
    ],
)
def test_a_bar_is_shown_for_what_takes_long(
    monkeypatch: pytest.MonkeyPatch, seconds: int, is_terminal: bool, rank: str, shown: bool
) -> None:
    stream = Terminal() if is_terminal else io.StringIO()
    now = 0.0
    monkeypatch.setattr("sys.stdout", stream)
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr("tqdm.std.time", lambda: now)
    with console.progress(None, 10, "check") as bar:
        bar._time = lambda: now
        bar.start_t = bar.last_print_t = now
        now = float(seconds)
        bar.update(5)
        written = stream.getvalue()
    assert ("check" in written) == shown
    if shown and not is_terminal:
        assert written.startswith("check: 5 of 10, ")
        assert written.count("\n") == 1


def test_a_bar_in_a_log_leaves_the_lines_of_others_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with console.progress(None, 10, "check") as bar:
        for _ in range(10):
            console.say("train", "started")
            tqdm.write("a line")
            bar.update()
    assert capsys.readouterr().out == "train: started\na line\n" * 10


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (45.4, "45 s"),
        (185, "3 min 05 s"),
        (599.6, "10 min"),
        (600, "10 min"),
        (3 * 3600 + 301, "3 h 05 min"),
    ],
)
def test_time_spans_are_readable(seconds: float, text: str) -> None:
    assert console.duration(seconds) == text
