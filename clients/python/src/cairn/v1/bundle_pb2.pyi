from cairn.v1 import history_pb2 as _history_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class BundleCreateRequest(_message.Message):
    __slots__ = ("repos", "path", "since", "records_only", "catalogue")
    REPOS_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    RECORDS_ONLY_FIELD_NUMBER: _ClassVar[int]
    CATALOGUE_FIELD_NUMBER: _ClassVar[int]
    repos: _containers.RepeatedScalarFieldContainer[str]
    path: str
    since: str
    records_only: bool
    catalogue: bool
    def __init__(self, repos: _Optional[_Iterable[str]] = ..., path: _Optional[str] = ..., since: _Optional[str] = ..., records_only: bool = ..., catalogue: bool = ...) -> None: ...

class BundleProgress(_message.Message):
    __slots__ = ("bytes_done", "bytes_total")
    BYTES_DONE_FIELD_NUMBER: _ClassVar[int]
    BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    bytes_done: int
    bytes_total: int
    def __init__(self, bytes_done: _Optional[int] = ..., bytes_total: _Optional[int] = ...) -> None: ...

class BundleCreateEvent(_message.Message):
    __slots__ = ("progress", "piece", "done")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    progress: BundleProgress
    piece: bytes
    done: Bundled
    def __init__(self, progress: _Optional[_Union[BundleProgress, _Mapping]] = ..., piece: _Optional[bytes] = ..., done: _Optional[_Union[Bundled, _Mapping]] = ...) -> None: ...

class Bundled(_message.Message):
    __slots__ = ("records", "revisions", "blobs", "bytes", "new_records", "new_blobs", "new_bytes", "refused", "advisories", "file_bytes", "seconds")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    REVISIONS_FIELD_NUMBER: _ClassVar[int]
    BLOBS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    NEW_RECORDS_FIELD_NUMBER: _ClassVar[int]
    NEW_BLOBS_FIELD_NUMBER: _ClassVar[int]
    NEW_BYTES_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    ADVISORIES_FIELD_NUMBER: _ClassVar[int]
    FILE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    records: int
    revisions: int
    blobs: int
    bytes: int
    new_records: int
    new_blobs: int
    new_bytes: int
    refused: _containers.RepeatedScalarFieldContainer[str]
    advisories: _containers.RepeatedCompositeFieldContainer[_history_pb2.Advisory]
    file_bytes: int
    seconds: float
    def __init__(self, records: _Optional[int] = ..., revisions: _Optional[int] = ..., blobs: _Optional[int] = ..., bytes: _Optional[int] = ..., new_records: _Optional[int] = ..., new_blobs: _Optional[int] = ..., new_bytes: _Optional[int] = ..., refused: _Optional[_Iterable[str]] = ..., advisories: _Optional[_Iterable[_Union[_history_pb2.Advisory, _Mapping]]] = ..., file_bytes: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class BundleApplyRequest(_message.Message):
    __slots__ = ("path", "keep_going", "piece")
    PATH_FIELD_NUMBER: _ClassVar[int]
    KEEP_GOING_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    path: str
    keep_going: bool
    piece: bytes
    def __init__(self, path: _Optional[str] = ..., keep_going: bool = ..., piece: _Optional[bytes] = ...) -> None: ...

class BundleApplyEvent(_message.Message):
    __slots__ = ("progress", "done")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    progress: BundleProgress
    done: Bundled
    def __init__(self, progress: _Optional[_Union[BundleProgress, _Mapping]] = ..., done: _Optional[_Union[Bundled, _Mapping]] = ...) -> None: ...

class BundleSummaryRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class BundleSummaryPiece(_message.Message):
    __slots__ = ("piece", "records", "blobs")
    PIECE_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    BLOBS_FIELD_NUMBER: _ClassVar[int]
    piece: bytes
    records: int
    blobs: int
    def __init__(self, piece: _Optional[bytes] = ..., records: _Optional[int] = ..., blobs: _Optional[int] = ...) -> None: ...
