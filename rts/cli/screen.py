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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rts.cli.table import cut

T = TypeVar("T")

#: Seconds between polls of the keyboard.
KEYS_S = 0.1

_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _END_OF_LINE, _END_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"


def live(
    gather: Callable[[], T], lines: Callable[[T, int, int], list[str]], interval_s: float
) -> None:
    """Draw what *gather* returns every *interval_s* seconds, until q or Ctrl-C; *lines* turns
    it into lines for a width in characters and a height.

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
    drawn: object = None
    with screen():
        while not failed:
            terminal = os.get_terminal_size(sys.stdout.fileno())
            width, height = max(20, terminal.columns), max(3, terminal.lines)
            shown = (*found, width, height)
            if shown != drawn:
                text = lines(found[0], width, height - 1) if found else ["Loading…"]
                _draw(text, width, height, f"every {interval_s:g} s · q to quit")
                drawn = shown
            ready, _, _ = select.select([sys.stdin], [], [], KEYS_S)
            if ready and ends(os.read(sys.stdin.fileno(), 256)):
                break
    stop.set()
    if failed:
        raise failed[0]


def ends(keys: bytes) -> bool:
    """Return whether the keys end the view; no keys at all mean that the terminal is gone."""
    return not keys or any(key in keys for key in (b"q", b"Q", b"\x04"))


def _draw(text: list[str], width: int, height: int, footer: str) -> None:
    room = height - 1
    if len(text) > room:
        hidden = len(text) - room + 1
        text = [*text[: room - 1], f"… {hidden} more lines; the window is too small"]
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
