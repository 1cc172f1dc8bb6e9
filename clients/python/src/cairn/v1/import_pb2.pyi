from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ScanRequest(_message.Message):
    __slots__ = ("repo", "path")
    REPO_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    repo: str
    path: str
    def __init__(self, repo: _Optional[str] = ..., path: _Optional[str] = ...) -> None: ...

class ScanEvent(_message.Message):
    __slots__ = ("file", "done")
    FILE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    file: ScannedFile
    done: Scanned
    def __init__(self, file: _Optional[_Union[ScannedFile, _Mapping]] = ..., done: _Optional[_Union[Scanned, _Mapping]] = ...) -> None: ...

class ScannedFile(_message.Message):
    __slots__ = ("path", "kind", "verdict", "findings", "left_out")
    PATH_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    FINDINGS_FIELD_NUMBER: _ClassVar[int]
    LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    path: str
    kind: str
    verdict: str
    findings: _containers.RepeatedCompositeFieldContainer[ScanFinding]
    left_out: int
    def __init__(self, path: _Optional[str] = ..., kind: _Optional[str] = ..., verdict: _Optional[str] = ..., findings: _Optional[_Iterable[_Union[ScanFinding, _Mapping]]] = ..., left_out: _Optional[int] = ...) -> None: ...

class ScanFinding(_message.Message):
    __slots__ = ("verdict", "what")
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    verdict: str
    what: str
    def __init__(self, verdict: _Optional[str] = ..., what: _Optional[str] = ...) -> None: ...

class Scanned(_message.Message):
    __slots__ = ("verdict", "files", "clean", "code", "unsafe", "summary", "scanner", "scanner_version", "repo", "revision")
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    CLEAN_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    UNSAFE_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    SCANNER_FIELD_NUMBER: _ClassVar[int]
    SCANNER_VERSION_FIELD_NUMBER: _ClassVar[int]
    REPO_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    verdict: str
    files: int
    clean: int
    code: int
    unsafe: int
    summary: str
    scanner: str
    scanner_version: str
    repo: str
    revision: str
    def __init__(self, verdict: _Optional[str] = ..., files: _Optional[int] = ..., clean: _Optional[int] = ..., code: _Optional[int] = ..., unsafe: _Optional[int] = ..., summary: _Optional[str] = ..., scanner: _Optional[str] = ..., scanner_version: _Optional[str] = ..., repo: _Optional[str] = ..., revision: _Optional[str] = ...) -> None: ...

class ExportRequest(_message.Message):
    __slots__ = ("repo", "to", "include", "link", "hub_cache")
    REPO_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_FIELD_NUMBER: _ClassVar[int]
    LINK_FIELD_NUMBER: _ClassVar[int]
    HUB_CACHE_FIELD_NUMBER: _ClassVar[int]
    repo: str
    to: str
    include: _containers.RepeatedScalarFieldContainer[str]
    link: bool
    hub_cache: bool
    def __init__(self, repo: _Optional[str] = ..., to: _Optional[str] = ..., include: _Optional[_Iterable[str]] = ..., link: bool = ..., hub_cache: bool = ...) -> None: ...
