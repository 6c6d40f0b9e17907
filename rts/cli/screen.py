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
from typing import Protocol, TypeVar

from rts.cli.table import cut

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)


class Lines(Protocol[T_contra]):
    """Makes the lines of a screen."""

    def __call__(self, shown: T_contra, /, *, width: int, height: int) -> list[str]: ...


#: Seconds between polls of the keyboard.
KEYS_S = 0.1

_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _END_OF_LINE, _END_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"


def live(gather: Callable[[], T], lines: Lines[T], interval_s: float) -> None:
    """Draw what *gather* returns every *interval_s* seconds, until q or Ctrl-C; *lines* turns
    it into lines for a *width* in characters and a *height*.

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
    with screen() as size:
        while not failed:
            shown = found[0] if found else None
            if shown is not drawn or drawn is None or size.changed:
                size.changed = False
                _draw(shown, lines, interval_s)
                drawn = shown
            try:
                ready, _, _ = select.select([sys.stdin], [], [], KEYS_S)
                if ready and ends(os.read(sys.stdin.fileno(), 256)):
                    break
            except InterruptedError:
                continue
            except KeyboardInterrupt:
                break
    stop.set()
    if failed:
        raise failed[0]


def ends(keys: bytes) -> bool:
    """Return whether the keys end the view; no keys at all mean that the terminal is gone."""
    return not keys or any(key in keys for key in (b"q", b"Q", b"\x04"))


class Size:
    """Whether the terminal's size has changed. Not an event: a signal handler could find its
    lock held by the thread that it interrupts.
    """

    changed = False

    def on_resize(self, *_: object) -> None:
        """Runs between two instructions of the main thread."""
        self.changed = True


def _draw(shown: T | None, lines: Lines[T], interval_s: float) -> None:
    size = os.get_terminal_size(sys.stdout.fileno())
    width, height = max(20, size.columns), max(3, size.lines)
    room = height - 1
    text = ["Loading…"] if shown is None else lines(shown, width=width, height=room)
    if len(text) > room:
        hidden = len(text) - room + 1
        text = [*text[: room - 1], f"… {hidden} more lines; the window is too small"]
    text += [""] * (room - len(text))
    text.append(cut(f"every {interval_s:g} s · q to quit", width))
    sys.stdout.write(_HOME + "\r\n".join(t + _END_OF_LINE for t in text) + _END_OF_SCREEN)
    sys.stdout.flush()


@contextmanager
def screen() -> Iterator[Size]:
    """Take over the terminal, and restore it whatever happens."""
    size = Size()
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    handlers = {
        signal.SIGWINCH: signal.signal(signal.SIGWINCH, size.on_resize),
        signal.SIGTERM: signal.signal(signal.SIGTERM, _interrupt),
        # Python leaves it ignored if it was when Python started, as under nohup.
        signal.SIGINT: signal.signal(signal.SIGINT, _interrupt),
    }
    try:
        tty.setcbreak(descriptor)
        sys.stdout.write(_ENTER)
        sys.stdout.flush()
        yield size
    except KeyboardInterrupt:
        pass
    finally:
        sys.stdout.write(_LEAVE)
        sys.stdout.flush()
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
