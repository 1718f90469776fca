from __future__ import annotations

import io
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from winnow.cli.progress import print_line
from winnow.cli.terminal import Terminal
from winnow.printable import markdown, printable, printable_text, spreadsheet_cell

HOSTILE = "see [/ticket] [red]x[/red] :smile: \x1b[31mred\x1b]0;title\x07 \u202egnp.exe"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Katze 1.jpg", "Katze 1.jpg"),
        ("Äpfel 🍏 猫.png", "Äpfel 🍏 猫.png"),
        ("👩‍🔬 \u00a0x", "👩‍🔬 \u00a0x"),  # joined emoji and a no-break space are no control characters
        ("a\nb\tc", r"a\nb\tc"),
        ("\x1b[2J", r"\x1b[2J"),
        ("gnp\u202egpj.exe", r"gnp\u202egpj.exe"),
        (os.fsdecode(b"caf\xe9"), r"caf\udce9"),
    ],
)
def test_names_on_one_line(name: str, expected: str) -> None:
    assert printable(name) == expected


def test_lines_and_tabs_stay_in_text() -> None:
    assert printable_text("one\n\ttwo\r\x00") == "one\n\ttwo\\r\\x00"


@given(st.text())
def test_no_control_character_is_left(text: str) -> None:
    assert not any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in printable(text))
    printable(text).encode("utf-8")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see [/ticket](http://x)", r"see \[/ticket\]\(http://x\)"),
        ("<script>alert(1)</script>", r"\<script\>alert\(1\)\</script\>"),
        ("a|b\n# c", r"a\|b \# c"),
        ("drop 0.2 points (-0.5 to 0.9)", r"drop 0.2 points \(-0.5 to 0.9\)"),
    ],
)
def test_markdown_escapes_special_characters(text: str, expected: str) -> None:
    assert markdown(text) == expected


@pytest.mark.parametrize("text", ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\tx", "\rx"])
def test_no_cell_starts_like_a_formula(text: str) -> None:
    assert spreadsheet_cell(text) == f"'{text}"
    assert spreadsheet_cell("cat/1.jpg") == "cat/1.jpg"


def output_of(console: Terminal) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_prints_external_text_without_markup(terminal: bool) -> None:
    console = Terminal(width=400)
    console.file = io.StringIO()
    console._force_terminal = terminal
    console.print(HOSTILE)
    table = Table("reason", HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE, "x")
    console.print(table)
    assert output_of(console).count("see [/ticket] [red]x[/red] :smile:") == 4
    assert "\x1b[31m" not in output_of(console)
    assert "\x1b]0" not in output_of(console)
    assert "\u202e" not in output_of(console)


def test_message_without_rich(capsys: pytest.CaptureFixture[str]) -> None:
    print_line(HOSTILE)
    assert "\x1b" not in capsys.readouterr().out
