"""Shows how far a long call is: tqdm's bar where it is installed, else one line that rewrites itself. On stderr, and only on a
terminal; in a pipe nothing is written. A caller's own function gets every `Progress` instead."""

from __future__ import annotations

import sys
from typing import Callable, Union

from cairn.types import Progress

Report = Union[bool, None, Callable[[Progress], None]]
"""True or None: a bar on a terminal. False: nothing. A function: called with every `Progress`."""


class Bar:
    """One bar a phase; a context manager that leaves the line whole."""

    def __init__(self, report: Report) -> None:
        self._report = report if callable(report) else None
        self._shown = self._report is None and report is not False and sys.stderr.isatty()
        self._phase, self._done, self._bar, self._written = "", 0, None, False

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leaves the line whole; may be called again and again."""
        if self._bar is not None:
            self._bar.close()
        if self._written:
            sys.stderr.write("\n")
        self._bar, self._written = None, False

    def update(self, progress: Progress) -> None:
        """Shows or hands on one step."""
        if self._report is not None:
            self._report(progress)
        elif self._shown:
            self._draw(progress)

    def _draw(self, progress: Progress) -> None:
        if progress.phase != self._phase:
            self.close()
            self._phase, self._done, self._bar = progress.phase, 0, _tqdm(progress)
        if self._bar is None:
            self._write(progress)
            return
        self._bar.total = progress.bytes_total or None
        self._bar.update(progress.bytes_done - self._done)
        self._done = progress.bytes_done

    def _write(self, progress: Progress) -> None:
        part = progress.bytes_done / progress.bytes_total if progress.bytes_total else 0.0
        filled = "#" * int(20 * part)
        mebibytes = progress.bytes_done / 2**20
        sys.stderr.write(f"\r{progress.phase:<8} [{filled:<20}] {part:4.0%} {mebibytes:.1f} MiB")
        sys.stderr.flush()
        self._written = True


def _tqdm(progress: Progress):
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        return None
    return tqdm(total=progress.bytes_total or None, desc=progress.phase, unit="B", unit_scale=True, unit_divisor=1024)
