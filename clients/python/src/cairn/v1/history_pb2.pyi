from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class HistoryRequest(_message.Message):
    __slots__ = ("repo", "limit", "page_token")
    REPO_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    repo: str
    limit: int
    page_token: str
    def __init__(self, repo: _Optional[str] = ..., limit: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class HistoryResponse(_message.Message):
    __slots__ = ("repo", "ref", "revisions", "next_page_token", "warning")
    REPO_FIELD_NUMBER: _ClassVar[int]
    REF_FIELD_NUMBER: _ClassVar[int]
    REVISIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    WARNING_FIELD_NUMBER: _ClassVar[int]
    repo: str
    ref: str
    revisions: _containers.RepeatedCompositeFieldContainer[PastRevision]
    next_page_token: str
    warning: str
    def __init__(self, repo: _Optional[str] = ..., ref: _Optional[str] = ..., revisions: _Optional[_Iterable[_Union[PastRevision, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., warning: _Optional[str] = ...) -> None: ...

class PastRevision(_message.Message):
    __slots__ = ("revision", "epoch", "number", "state", "signer", "message", "created_ms", "files", "bytes", "parents", "refs", "held")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SIGNER_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    CREATED_MS_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    PARENTS_FIELD_NUMBER: _ClassVar[int]
    REFS_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    revision: str
    epoch: int
    number: int
    state: str
    signer: str
    message: str
    created_ms: int
    files: int
    bytes: int
    parents: _containers.RepeatedScalarFieldContainer[str]
    refs: _containers.RepeatedScalarFieldContainer[str]
    held: bool
    def __init__(self, revision: _Optional[str] = ..., epoch: _Optional[int] = ..., number: _Optional[int] = ..., state: _Optional[str] = ..., signer: _Optional[str] = ..., message: _Optional[str] = ..., created_ms: _Optional[int] = ..., files: _Optional[int] = ..., bytes: _Optional[int] = ..., parents: _Optional[_Iterable[str]] = ..., refs: _Optional[_Iterable[str]] = ..., held: bool = ...) -> None: ...

class DiffRequest(_message.Message):
    __slots__ = ("repo", "to", "bytes")
    REPO_FIELD_NUMBER: _ClassVar[int]
    FROM_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    repo: str
    to: str
    bytes: bool
    def __init__(self, repo: _Optional[str] = ..., to: _Optional[str] = ..., bytes: bool = ..., **kwargs) -> None: ...

class DiffResponse(_message.Message):
    __slots__ = ("repo", "to", "files", "tensors", "tensors_same", "bytes_new", "bytes_shared", "metadata")
    REPO_FIELD_NUMBER: _ClassVar[int]
    FROM_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    TENSORS_SAME_FIELD_NUMBER: _ClassVar[int]
    BYTES_NEW_FIELD_NUMBER: _ClassVar[int]
    BYTES_SHARED_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    repo: str
    to: str
    files: _containers.RepeatedCompositeFieldContainer[FileChange]
    tensors: _containers.RepeatedCompositeFieldContainer[TensorChange]
    tensors_same: int
    bytes_new: int
    bytes_shared: int
    metadata: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, repo: _Optional[str] = ..., to: _Optional[str] = ..., files: _Optional[_Iterable[_Union[FileChange, _Mapping]]] = ..., tensors: _Optional[_Iterable[_Union[TensorChange, _Mapping]]] = ..., tensors_same: _Optional[int] = ..., bytes_new: _Optional[int] = ..., bytes_shared: _Optional[int] = ..., metadata: _Optional[_Iterable[str]] = ..., **kwargs) -> None: ...

class FileChange(_message.Message):
    __slots__ = ("path", "change", "size_before", "size_after", "path_before")
    PATH_FIELD_NUMBER: _ClassVar[int]
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    SIZE_BEFORE_FIELD_NUMBER: _ClassVar[int]
    SIZE_AFTER_FIELD_NUMBER: _ClassVar[int]
    PATH_BEFORE_FIELD_NUMBER: _ClassVar[int]
    path: str
    change: str
    size_before: int
    size_after: int
    path_before: str
    def __init__(self, path: _Optional[str] = ..., change: _Optional[str] = ..., size_before: _Optional[int] = ..., size_after: _Optional[int] = ..., path_before: _Optional[str] = ...) -> None: ...

class TensorChange(_message.Message):
    __slots__ = ("name", "change", "before", "after")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    name: str
    change: str
    before: str
    after: str
    def __init__(self, name: _Optional[str] = ..., change: _Optional[str] = ..., before: _Optional[str] = ..., after: _Optional[str] = ...) -> None: ...

class SetRefRequest(_message.Message):
    __slots__ = ("repo", "ref", "tag")
    REPO_FIELD_NUMBER: _ClassVar[int]
    REF_FIELD_NUMBER: _ClassVar[int]
    TAG_FIELD_NUMBER: _ClassVar[int]
    repo: str
    ref: str
    tag: bool
    def __init__(self, repo: _Optional[str] = ..., ref: _Optional[str] = ..., tag: bool = ...) -> None: ...

class SetRefResponse(_message.Message):
    __slots__ = ("repo", "ref", "revision", "epoch", "number")
    REPO_FIELD_NUMBER: _ClassVar[int]
    REF_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    repo: str
    ref: str
    revision: str
    epoch: int
    number: int
    def __init__(self, repo: _Optional[str] = ..., ref: _Optional[str] = ..., revision: _Optional[str] = ..., epoch: _Optional[int] = ..., number: _Optional[int] = ...) -> None: ...

class LineageRequest(_message.Message):
    __slots__ = ("repo", "depth")
    REPO_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    repo: str
    depth: int
    def __init__(self, repo: _Optional[str] = ..., depth: _Optional[int] = ...) -> None: ...

class LineageResponse(_message.Message):
    __slots__ = ("repo", "revision", "origins", "descendants", "cut")
    REPO_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    ORIGINS_FIELD_NUMBER: _ClassVar[int]
    DESCENDANTS_FIELD_NUMBER: _ClassVar[int]
    CUT_FIELD_NUMBER: _ClassVar[int]
    repo: str
    revision: str
    origins: _containers.RepeatedCompositeFieldContainer[LineageEdge]
    descendants: _containers.RepeatedCompositeFieldContainer[LineageEdge]
    cut: bool
    def __init__(self, repo: _Optional[str] = ..., revision: _Optional[str] = ..., origins: _Optional[_Iterable[_Union[LineageEdge, _Mapping]]] = ..., descendants: _Optional[_Iterable[_Union[LineageEdge, _Mapping]]] = ..., cut: bool = ...) -> None: ...

class LineageEdge(_message.Message):
    __slots__ = ("depth", "relation", "child", "origin")
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    RELATION_FIELD_NUMBER: _ClassVar[int]
    CHILD_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    depth: int
    relation: str
    child: LineagePlace
    origin: LineagePlace
    def __init__(self, depth: _Optional[int] = ..., relation: _Optional[str] = ..., child: _Optional[_Union[LineagePlace, _Mapping]] = ..., origin: _Optional[_Union[LineagePlace, _Mapping]] = ...) -> None: ...

class LineagePlace(_message.Message):
    __slots__ = ("repo", "revision", "known")
    REPO_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    repo: str
    revision: str
    known: bool
    def __init__(self, repo: _Optional[str] = ..., revision: _Optional[str] = ..., known: bool = ...) -> None: ...

class AdviseRequest(_message.Message):
    __slots__ = ("name", "category", "subjects", "text", "url", "instead", "signer", "withdraw")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    SUBJECTS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    INSTEAD_FIELD_NUMBER: _ClassVar[int]
    SIGNER_FIELD_NUMBER: _ClassVar[int]
    WITHDRAW_FIELD_NUMBER: _ClassVar[int]
    name: str
    category: str
    subjects: _containers.RepeatedScalarFieldContainer[str]
    text: str
    url: str
    instead: str
    signer: str
    withdraw: bool
    def __init__(self, name: _Optional[str] = ..., category: _Optional[str] = ..., subjects: _Optional[_Iterable[str]] = ..., text: _Optional[str] = ..., url: _Optional[str] = ..., instead: _Optional[str] = ..., signer: _Optional[str] = ..., withdraw: bool = ...) -> None: ...

class AdviseResponse(_message.Message):
    __slots__ = ("advisory",)
    ADVISORY_FIELD_NUMBER: _ClassVar[int]
    advisory: Advisory
    def __init__(self, advisory: _Optional[_Union[Advisory, _Mapping]] = ...) -> None: ...

class AdvisoriesRequest(_message.Message):
    __slots__ = ("repo",)
    REPO_FIELD_NUMBER: _ClassVar[int]
    repo: str
    def __init__(self, repo: _Optional[str] = ...) -> None: ...

class AdvisoriesResponse(_message.Message):
    __slots__ = ("advisories",)
    ADVISORIES_FIELD_NUMBER: _ClassVar[int]
    advisories: _containers.RepeatedCompositeFieldContainer[Advisory]
    def __init__(self, advisories: _Optional[_Iterable[_Union[Advisory, _Mapping]]] = ...) -> None: ...

class Advisory(_message.Message):
    __slots__ = ("name", "number", "category", "subjects", "text", "url", "instead", "created_ms", "signer", "signer_handle", "weight", "action", "withdrawn")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    SUBJECTS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    INSTEAD_FIELD_NUMBER: _ClassVar[int]
    CREATED_MS_FIELD_NUMBER: _ClassVar[int]
    SIGNER_FIELD_NUMBER: _ClassVar[int]
    SIGNER_HANDLE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    WITHDRAWN_FIELD_NUMBER: _ClassVar[int]
    name: str
    number: int
    category: str
    subjects: _containers.RepeatedScalarFieldContainer[str]
    text: str
    url: str
    instead: str
    created_ms: int
    signer: str
    signer_handle: str
    weight: str
    action: str
    withdrawn: bool
    def __init__(self, name: _Optional[str] = ..., number: _Optional[int] = ..., category: _Optional[str] = ..., subjects: _Optional[_Iterable[str]] = ..., text: _Optional[str] = ..., url: _Optional[str] = ..., instead: _Optional[str] = ..., created_ms: _Optional[int] = ..., signer: _Optional[str] = ..., signer_handle: _Optional[str] = ..., weight: _Optional[str] = ..., action: _Optional[str] = ..., withdrawn: bool = ...) -> None: ...

class AttestRequest(_message.Message):
    __slots__ = ("repo", "type", "tool", "tool_version", "verdict", "measurements", "text", "signer", "withdraw")
    REPO_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    TOOL_FIELD_NUMBER: _ClassVar[int]
    TOOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    MEASUREMENTS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    SIGNER_FIELD_NUMBER: _ClassVar[int]
    WITHDRAW_FIELD_NUMBER: _ClassVar[int]
    repo: str
    type: str
    tool: str
    tool_version: str
    verdict: str
    measurements: _containers.RepeatedCompositeFieldContainer[Measurement]
    text: str
    signer: str
    withdraw: bool
    def __init__(self, repo: _Optional[str] = ..., type: _Optional[str] = ..., tool: _Optional[str] = ..., tool_version: _Optional[str] = ..., verdict: _Optional[str] = ..., measurements: _Optional[_Iterable[_Union[Measurement, _Mapping]]] = ..., text: _Optional[str] = ..., signer: _Optional[str] = ..., withdraw: bool = ...) -> None: ...

class AttestResponse(_message.Message):
    __slots__ = ("attestation",)
    ATTESTATION_FIELD_NUMBER: _ClassVar[int]
    attestation: Attestation
    def __init__(self, attestation: _Optional[_Union[Attestation, _Mapping]] = ...) -> None: ...

class Measurement(_message.Message):
    __slots__ = ("name", "value", "unit", "on")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    ON_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: float
    unit: str
    on: str
    def __init__(self, name: _Optional[str] = ..., value: _Optional[float] = ..., unit: _Optional[str] = ..., on: _Optional[str] = ...) -> None: ...

class Attestation(_message.Message):
    __slots__ = ("type", "tool", "tool_version", "number", "verdict", "measurements", "text", "created_ms", "signer", "signer_handle", "weight")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    TOOL_FIELD_NUMBER: _ClassVar[int]
    TOOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    MEASUREMENTS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    CREATED_MS_FIELD_NUMBER: _ClassVar[int]
    SIGNER_FIELD_NUMBER: _ClassVar[int]
    SIGNER_HANDLE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    type: str
    tool: str
    tool_version: str
    number: int
    verdict: str
    measurements: _containers.RepeatedCompositeFieldContainer[Measurement]
    text: str
    created_ms: int
    signer: str
    signer_handle: str
    weight: str
    def __init__(self, type: _Optional[str] = ..., tool: _Optional[str] = ..., tool_version: _Optional[str] = ..., number: _Optional[int] = ..., verdict: _Optional[str] = ..., measurements: _Optional[_Iterable[_Union[Measurement, _Mapping]]] = ..., text: _Optional[str] = ..., created_ms: _Optional[int] = ..., signer: _Optional[str] = ..., signer_handle: _Optional[str] = ..., weight: _Optional[str] = ...) -> None: ...

class PublisherRequest(_message.Message):
    __slots__ = ("publisher",)
    PUBLISHER_FIELD_NUMBER: _ClassVar[int]
    publisher: str
    def __init__(self, publisher: _Optional[str] = ...) -> None: ...

class PublisherResponse(_message.Message):
    __slots__ = ("publisher", "handle", "display_name", "epoch", "signing_key", "recovery_key", "members", "own", "claimants", "resolved_by", "adviser", "contested_epochs")
    PUBLISHER_FIELD_NUMBER: _ClassVar[int]
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SIGNING_KEY_FIELD_NUMBER: _ClassVar[int]
    RECOVERY_KEY_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    OWN_FIELD_NUMBER: _ClassVar[int]
    CLAIMANTS_FIELD_NUMBER: _ClassVar[int]
    RESOLVED_BY_FIELD_NUMBER: _ClassVar[int]
    ADVISER_FIELD_NUMBER: _ClassVar[int]
    CONTESTED_EPOCHS_FIELD_NUMBER: _ClassVar[int]
    publisher: str
    handle: str
    display_name: str
    epoch: int
    signing_key: str
    recovery_key: str
    members: _containers.RepeatedScalarFieldContainer[str]
    own: bool
    claimants: _containers.RepeatedScalarFieldContainer[str]
    resolved_by: str
    adviser: bool
    contested_epochs: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, publisher: _Optional[str] = ..., handle: _Optional[str] = ..., display_name: _Optional[str] = ..., epoch: _Optional[int] = ..., signing_key: _Optional[str] = ..., recovery_key: _Optional[str] = ..., members: _Optional[_Iterable[str]] = ..., own: bool = ..., claimants: _Optional[_Iterable[str]] = ..., resolved_by: _Optional[str] = ..., adviser: bool = ..., contested_epochs: _Optional[_Iterable[int]] = ...) -> None: ...

class KeyListRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class KeyListResponse(_message.Message):
    __slots__ = ("publishers",)
    PUBLISHERS_FIELD_NUMBER: _ClassVar[int]
    publishers: _containers.RepeatedCompositeFieldContainer[PublisherResponse]
    def __init__(self, publishers: _Optional[_Iterable[_Union[PublisherResponse, _Mapping]]] = ...) -> None: ...

class KeyNewRequest(_message.Message):
    __slots__ = ("handle", "display_name", "recovery_key")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    RECOVERY_KEY_FIELD_NUMBER: _ClassVar[int]
    handle: str
    display_name: str
    recovery_key: str
    def __init__(self, handle: _Optional[str] = ..., display_name: _Optional[str] = ..., recovery_key: _Optional[str] = ...) -> None: ...

class ProfileSetRequest(_message.Message):
    __slots__ = ("publisher", "display_name", "add_members")
    PUBLISHER_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    ADD_MEMBERS_FIELD_NUMBER: _ClassVar[int]
    publisher: str
    display_name: str
    add_members: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, publisher: _Optional[str] = ..., display_name: _Optional[str] = ..., add_members: _Optional[_Iterable[str]] = ...) -> None: ...

class KeyRotateRequest(_message.Message):
    __slots__ = ("publisher", "recovery_file", "recovery_key", "remove_members")
    PUBLISHER_FIELD_NUMBER: _ClassVar[int]
    RECOVERY_FILE_FIELD_NUMBER: _ClassVar[int]
    RECOVERY_KEY_FIELD_NUMBER: _ClassVar[int]
    REMOVE_MEMBERS_FIELD_NUMBER: _ClassVar[int]
    publisher: str
    recovery_file: str
    recovery_key: str
    remove_members: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, publisher: _Optional[str] = ..., recovery_file: _Optional[str] = ..., recovery_key: _Optional[str] = ..., remove_members: _Optional[_Iterable[str]] = ...) -> None: ...

class KeyRotateResponse(_message.Message):
    __slots__ = ("publisher", "refs")
    PUBLISHER_FIELD_NUMBER: _ClassVar[int]
    REFS_FIELD_NUMBER: _ClassVar[int]
    publisher: PublisherResponse
    refs: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, publisher: _Optional[_Union[PublisherResponse, _Mapping]] = ..., refs: _Optional[_Iterable[str]] = ...) -> None: ...

class TrustListRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TrustListResponse(_message.Message):
    __slots__ = ("trusted",)
    TRUSTED_FIELD_NUMBER: _ClassVar[int]
    trusted: _containers.RepeatedCompositeFieldContainer[Trusted]
    def __init__(self, trusted: _Optional[_Iterable[_Union[Trusted, _Mapping]]] = ...) -> None: ...

class Trusted(_message.Message):
    __slots__ = ("handle", "publisher", "adviser", "pinned")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    PUBLISHER_FIELD_NUMBER: _ClassVar[int]
    ADVISER_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    handle: str
    publisher: str
    adviser: bool
    pinned: bool
    def __init__(self, handle: _Optional[str] = ..., publisher: _Optional[str] = ..., adviser: bool = ..., pinned: bool = ...) -> None: ...

class TrustSetRequest(_message.Message):
    __slots__ = ("handle", "publisher", "adviser", "remove")
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    PUBLISHER_FIELD_NUMBER: _ClassVar[int]
    ADVISER_FIELD_NUMBER: _ClassVar[int]
    REMOVE_FIELD_NUMBER: _ClassVar[int]
    handle: str
    publisher: str
    adviser: bool
    remove: bool
    def __init__(self, handle: _Optional[str] = ..., publisher: _Optional[str] = ..., adviser: bool = ..., remove: bool = ...) -> None: ...

class TrustSetResponse(_message.Message):
    __slots__ = ("changed",)
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    changed: bool
    def __init__(self, changed: bool = ...) -> None: ...
