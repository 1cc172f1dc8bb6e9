"""A generation as it happens: iterate over its tokens, then look at `.result`. Leaving the `with` block, `cancel()`, or dropping
the object cancels the work on every node behind it."""

from __future__ import annotations

from typing import Callable, Iterator

import grpc

from cairn.errors import CairnError, Failed
from cairn.progress import Bar
from cairn.types import Progress, Recovery, Result, Started, Token


class Generation:
    """An iterator of `Token`. `started` is there before the first token, `result` at the end. Of several answers `result` is the first,
    and `results` has all."""

    def __init__(self, events, explain: Callable[[grpc.RpcError], CairnError], bar: Bar) -> None:
        self._events, self._explain, self._bar = events, explain, bar
        self._tokens, self._started = self._read(), None
        self._results: dict[int, Result] = {}
        self._waiting: list[Token] = []
        self.recoveries: list[Recovery] = []

    def __iter__(self) -> Iterator[Token]:
        return self

    def __next__(self) -> Token:
        return self._waiting.pop(0) if self._waiting else next(self._tokens)

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def __del__(self) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Ends the work behind it; a generation that is done stays done."""
        self._events.cancel()

    @property
    def started(self) -> Started:
        """Session, seed and plan; waits for them. Tokens that come meanwhile are not lost."""
        if self._started is None:
            token = next(self._tokens, None)
            if token is not None:
                self._waiting.append(token)
        if self._started is None:
            raise Failed("internal", "generation", "it ended before it started")
        return self._started

    @property
    def result(self) -> Result:
        """The whole generation; reads the rest of it first."""
        return self.results[0]

    @property
    def results(self) -> list[Result]:
        """All answers, in order; reads the rest of them first."""
        self._waiting.extend(self._tokens)
        if 0 not in self._results:
            raise Failed("internal", "generation", "it ended without a result")
        return [self._results[choice] for choice in sorted(self._results)]

    @property
    def text(self) -> str:
        """The whole text; reads the rest of it first."""
        return self.result.text

    def _read(self) -> Iterator[Token]:
        try:
            for event in self._events:
                kind = event.WhichOneof("event")
                if kind == "token":
                    self._bar.close()
                    yield Token._of(event.token, event.choice)
                elif kind == "started" and event.choice == 0:
                    self._started = Started._of(event.started)
                elif kind == "recovery":
                    self.recoveries.append(Recovery._of(event.recovery))
                elif kind == "progress":
                    self._bar.update(Progress._of(event.progress))
                elif kind == "done":
                    self._results[event.choice] = Result._of(event.done)
        except grpc.RpcError as error:
            raise self._explain(error) from None
        finally:
            self._bar.close()
