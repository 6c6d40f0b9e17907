"""A full-screen view on the terminal that is redrawn periodically."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rts.cli.table import cut

T = TypeVar("T")

#: Seconds between polls of the keyboard.
KEYS_S = 0.1
#: The keys that end the view: q, Q and Ctrl-D.
END = (b"q", b"Q", b"\x04")
#: Ctrl-Z, which is read as a key: its signal would leave the shell on this screen.
SUSPEND = b"\x1a"

_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _END_OF_LINE, _END_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"


def live(
    gather: Callable[[], T], lines: Callable[[T, int, int], list[str]], interval_s: float
) -> None:
    """Draw what *gather* returns every *interval_s* seconds, until q or Ctrl-C; *lines* turns
    it into lines for a width in characters and a height. Ctrl-Z suspends it.

    It gathers in a thread of its own: a server that hangs does not block the keyboard.
    """
    found: list[T] = []
    failed: list[BaseException] = []
    stop = threading.Event()

    def gather_again() -> None:
        try:
            while not stop.is_set():
                begin = time.monotonic()
                found[:] = [gather()]
                stop.wait(max(0.0, interval_s - (time.monotonic() - begin)))
        except Exception as exc:  # noqa: BLE001  raised again in the main thread
            failed.append(exc)

    threading.Thread(target=gather_again, daemon=True).start()
    suspended = True
    while suspended:
        suspended = False  # Ctrl-C ends the block below
        with screen():
            suspended = _draw_until_key(
                found, failed, lines, f"every {interval_s:g} s · q to quit"
            )
        if suspended:
            os.kill(0, signal.SIGTSTP)  # the shell's whole job, until it is continued
    stop.set()
    if failed:
        raise failed[0]


def _draw_until_key(
    found: Sequence[T],
    failed: Sequence[BaseException],
    lines: Callable[[T, int, int], list[str]],
    footer: str,
) -> bool:
    """Draw what was *found* last until a key ends that, or something has *failed*; return
    whether the key was Ctrl-Z.
    """
    drawn: object = None
    while not failed:
        terminal = os.get_terminal_size(sys.stdout.fileno())
        width, height = max(20, terminal.columns), max(3, terminal.lines)
        shown = (*found, width, height)
        if shown != drawn:
            text = lines(found[0], width, height - 1) if found else ["Loading…"]
            _draw(text, width, height, footer)
            drawn = shown
        ready, _, _ = select.select([sys.stdin], [], [], KEYS_S)
        if ready:
            keys = os.read(sys.stdin.fileno(), 256)
            if not keys or any(key in keys for key in END):  # no keys: the terminal is gone
                return False
            if SUSPEND in keys:
                return True
    return False


def _draw(text: list[str], width: int, height: int, footer: str) -> None:
    room = height - 1
    if len(text) > room:
        note = f"… {len(text) - room + 1} more lines; the window is too small"
        text = [*text[: room - 1], cut(note, width)]
    text = [*text, *[""] * (room - len(text)), cut(footer, width)]
    sys.stdout.write(_HOME + "\r\n".join(t + _END_OF_LINE for t in text) + _END_OF_SCREEN)
    sys.stdout.flush()


@contextmanager
def screen() -> Iterator[None]:
    """Take over the terminal, and restore it whatever happens. Ctrl-C ends the block."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    # Python leaves SIGINT ignored if it was when Python started, as under nohup.
    numbers = (signal.SIGTERM, signal.SIGINT)
    handlers = [signal.signal(number, _interrupt) for number in numbers]
    try:
        tty.setcbreak(descriptor)
        modes = termios.tcgetattr(descriptor)
        modes[6][termios.VSUSP] = b"\0"  # none
        termios.tcsetattr(descriptor, termios.TCSANOW, modes)
        sys.stdout.write(_ENTER)
        sys.stdout.flush()
        yield
    except KeyboardInterrupt:
        pass
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
