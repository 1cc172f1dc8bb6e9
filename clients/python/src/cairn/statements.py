"""What became of a repo and what is said of it, as values: history, differences, lineage, warnings, findings, publishers. No calls are
made here."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Type, TypeVar

from cairn.v1 import history_pb2 as pb

T = TypeVar("T")


def _same(kind: Type[T], message: Any) -> T:
    """A value whose fields are named and typed as the message's; repeated ones become lists."""
    values = {field.name: getattr(message, field.name) for field in fields(kind)}  # type: ignore[arg-type]
    plain = (str, int, float, bool)
    return kind(**{name: value if isinstance(value, plain) else list(value) for name, value in values.items()})


@dataclass(frozen=True)
class PastRevision:
    """What a ref stood for. `state`: "current", "past", "contested", "not continued", "before rotation" or "unknown"; `signer` is a
    key; `created_ms` is by the signer's clock; `refs` name the revision now; `held`: whole on the node that was asked."""

    revision: str
    epoch: int
    number: int
    state: str
    signer: str
    message: str
    created_ms: int
    files: int
    bytes: int
    parents: list[str]
    refs: list[str]
    held: bool


@dataclass(frozen=True)
class FileChange:
    """`change`: "added", "removed", "changed" or "renamed" (from `path_before`); sizes in bytes."""

    path: str
    change: str
    size_before: int
    size_after: int
    path_before: str


@dataclass(frozen=True)
class TensorChange:
    """`change`: "added", "removed", "reshaped", "retyped", "changed", or "unknown" where the bytes were not compared."""

    name: str
    change: str
    before: str
    after: str


@dataclass(frozen=True)
class Difference:
    """What differs between two revisions. `bytes_new`: what who has the first needs for the second."""

    repo: str
    start: str
    end: str
    files: list[FileChange]
    tensors: list[TensorChange]
    tensors_same: int
    bytes_new: int
    bytes_shared: int

    @classmethod
    def _of(cls, m: pb.DiffResponse) -> Difference:
        files = [_same(FileChange, file) for file in m.files]
        tensors = [_same(TensorChange, tensor) for tensor in m.tensors]
        start = getattr(m, "from")
        return cls(m.repo, start, m.to, files, tensors, m.tensors_same, m.bytes_new, m.bytes_shared)


@dataclass(frozen=True)
class Place:
    """A repo and perhaps a revision of it; `known`: whether the node that was asked knows a repo of that name."""

    repo: str
    revision: str
    known: bool


@dataclass(frozen=True)
class Edge:
    """That `child` was made from `origin`, `depth` steps from the revision that was asked for."""

    depth: int
    relation: str
    child: Place
    origin: Place

    @classmethod
    def _of(cls, m: pb.LineageEdge) -> Edge:
        return cls(m.depth, m.relation, _same(Place, m.child), _same(Place, m.origin))


@dataclass(frozen=True)
class Lineage:
    """What a revision was made from and what was made from it, nearest first; `cut`: there is more."""

    repo: str
    revision: str
    origins: list[Edge]
    descendants: list[Edge]
    cut: bool

    @classmethod
    def _of(cls, m: pb.LineageResponse) -> Lineage:
        origins, descendants = [Edge._of(edge) for edge in m.origins], [Edge._of(edge) for edge in m.descendants]
        return cls(m.repo, m.revision, origins, descendants, m.cut)


@dataclass(frozen=True)
class Advisory:
    """A signed warning. `weight`: "own", "publisher", "adviser" or "hearsay" (which changes nothing); `action` is what the node does:
    "refuse", "warn" or "ignore"."""

    name: str
    number: int
    category: str
    subjects: list[str]
    text: str
    url: str
    instead: str
    created_ms: int
    signer: str
    signer_handle: str
    weight: str
    action: str
    withdrawn: bool

    @classmethod
    def _of(cls, m: pb.Advisory) -> Advisory:
        return _same(cls, m)


@dataclass(frozen=True)
class Measurement:
    """A number that was found; `on` is what it was measured on."""

    name: str
    value: float
    unit: str = ""
    on: str = ""


@dataclass(frozen=True)
class Attestation:
    """What its signer found out about a revision; `weight` as in `Advisory`."""

    type: str
    tool: str
    tool_version: str
    number: int
    verdict: str
    measurements: list[Measurement]
    text: str
    created_ms: int
    signer: str
    signer_handle: str
    weight: str

    @classmethod
    def _of(cls, m: pb.Attestation) -> Attestation:
        measurements = [_same(Measurement, measurement) for measurement in m.measurements]
        return cls(
            m.type, m.tool, m.tool_version, m.number, m.verdict, measurements, m.text, m.created_ms, m.signer,
            m.signer_handle, m.weight,
        )


@dataclass(frozen=True)
class Publisher:
    """Who a publisher is and which keys sign for it. `own`: one of them is on the node that was asked."""

    publisher: str
    handle: str
    display_name: str
    epoch: int
    signing_key: str
    recovery_key: str
    members: list[str]
    own: bool
    claimants: list[str]
    resolved_by: str
    adviser: bool
    contested_epochs: list[int]

    @classmethod
    def _of(cls, m: pb.PublisherResponse) -> Publisher:
        return _same(cls, m)
