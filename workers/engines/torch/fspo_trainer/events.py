"""What the engine says (JSON lines on stdout) and how it is asked to stop."""

import ctypes
import json
import math
import os
import signal
import sys
import threading
import time

_stop = threading.Event()
_is_silent = False


def silence() -> None:
    """Makes `emit` do nothing: of several ranks only the first speaks."""
    global _is_silent
    _is_silent = True


def emit(event: str, **fields) -> None:
    """Prints one event. A reader that went away is a reason to stop, not an error."""
    if _is_silent and event != "error":
        return
    try:
        sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
        sys.stdout.flush()
    except (BrokenPipeError, ValueError):
        _stop.set()


def emit_metrics(event: str, metrics: dict, **fields) -> None:
    """An event with metrics; JSON has no infinity, so what is not finite is left out."""
    finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
    emit(event, **fields, metrics=finite)


def listen_for_stop() -> None:
    """From now on SIGTERM, SIGINT and a closed stdin (the parent died) ask to stop."""
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: _stop.set())
    threading.Thread(target=_read_stdin, daemon=True).start()


def stop_requested() -> bool:
    """Whether someone asked this process to save its work and end."""
    return _stop.is_set()


def die_with_parent() -> None:
    """Ends this process as soon as the one that started it is gone, even while it waits for other ranks."""
    parent = os.getppid()
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL, 0, 0, 0)
    threading.Thread(target=_watch_parent, args=(parent,), daemon=True).start()


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _read_stdin() -> None:
    try:
        while os.read(0, 4096):
            pass
    except OSError:
        pass
    _stop.set()
