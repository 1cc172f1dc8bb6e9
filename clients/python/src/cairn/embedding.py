"""Texts to vectors: lists longer than one request are cut, and put together again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator, Sequence

from cairn.errors import BadInput
from cairn.v1 import tasks_pb2 as pb

# What one request may hold (`TASK_TEXTS_MAX` and `TASK_BYTES_MAX` of the protocol).
_TEXTS_MAX = 1024
_BYTES_MAX = 512 << 10


@dataclass(frozen=True)
class Lost:
    """A node that failed; what it had not answered was asked of another."""

    node: str
    reason: str
    why: str


@dataclass(frozen=True)
class Embeddings:
    """`vectors` has one row a text, in their order. `nodes` computed them; `truncated` texts were longer than the model reads."""

    vectors: list[list[float]]
    repo: str
    revision: str
    width: int
    tokens: int
    truncated: int
    nodes: tuple[str, ...]
    lost: tuple[Lost, ...]
    seconds: float


def cut(texts: Sequence[str]) -> Iterator[list[str]]:
    """Lists that are one request each."""
    if isinstance(texts, str):
        raise BadInput("bad_input", "texts", "a list of texts is needed, not one text", f"texts=[{texts!r}]")
    part, size = [], 0
    for text in map(str, texts):
        length = len(text.encode())
        if part and (len(part) == _TEXTS_MAX or size + length > _BYTES_MAX):
            yield part
            part, size = [], 0
        part.append(text)
        size += length
    if part:
        yield part


def together(parts: Sequence[tuple[list[list[float]], pb.EmbedDone]]) -> Embeddings:
    """The answers of several requests as one."""
    last = parts[-1][1]
    nodes = dict.fromkeys(node for _, done in parts for node in done.nodes)
    return Embeddings(
        [vector for vectors, _ in parts for vector in vectors], last.repo, last.revision, last.width,
        sum(done.tokens for _, done in parts), sum(done.truncated for _, done in parts), tuple(nodes),
        tuple(Lost(lost.node, lost.reason, lost.why) for _, done in parts for lost in done.lost),
        sum(done.seconds for _, done in parts),
    )
