from cairn.v1 import bundle_pb2 as _bundle_pb2
from cairn.v1 import catalogue_pb2 as _catalogue_pb2
from cairn.v1 import history_pb2 as _history_pb2
from cairn.v1 import import_pb2 as _import_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Refusal(_message.Message):
    __slots__ = ("reason", "what", "why")
    REASON_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    TRY_FIELD_NUMBER: _ClassVar[int]
    reason: str
    what: str
    why: str
    def __init__(self, reason: _Optional[str] = ..., what: _Optional[str] = ..., why: _Optional[str] = ..., **kwargs) -> None: ...

class Digest(_message.Message):
    __slots__ = ("algorithm", "hex")
    ALGORITHM_FIELD_NUMBER: _ClassVar[int]
    HEX_FIELD_NUMBER: _ClassVar[int]
    algorithm: str
    hex: str
    def __init__(self, algorithm: _Optional[str] = ..., hex: _Optional[str] = ...) -> None: ...

class QuantiseRequest(_message.Message):
    __slots__ = ("source", "repo", "type", "message", "tag")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    REPO_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    TAG_FIELD_NUMBER: _ClassVar[int]
    source: str
    repo: str
    type: str
    message: str
    tag: str
    def __init__(self, source: _Optional[str] = ..., repo: _Optional[str] = ..., type: _Optional[str] = ..., message: _Optional[str] = ..., tag: _Optional[str] = ...) -> None: ...

class PublishRequest(_message.Message):
    __slots__ = ("path", "repo", "tag", "message", "link", "allow_unsafe_files")
    PATH_FIELD_NUMBER: _ClassVar[int]
    REPO_FIELD_NUMBER: _ClassVar[int]
    TAG_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    LINK_FIELD_NUMBER: _ClassVar[int]
    ALLOW_UNSAFE_FILES_FIELD_NUMBER: _ClassVar[int]
    path: str
    repo: str
    tag: str
    message: str
    link: bool
    allow_unsafe_files: bool
    def __init__(self, path: _Optional[str] = ..., repo: _Optional[str] = ..., tag: _Optional[str] = ..., message: _Optional[str] = ..., link: bool = ..., allow_unsafe_files: bool = ...) -> None: ...

class ImportRequest(_message.Message):
    __slots__ = ("source", "repo", "message", "endpoint", "token", "include", "exclude", "allow_unsafe_files")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    REPO_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_FIELD_NUMBER: _ClassVar[int]
    ALLOW_UNSAFE_FILES_FIELD_NUMBER: _ClassVar[int]
    source: str
    repo: str
    message: str
    endpoint: str
    token: str
    include: _containers.RepeatedScalarFieldContainer[str]
    exclude: _containers.RepeatedScalarFieldContainer[str]
    allow_unsafe_files: bool
    def __init__(self, source: _Optional[str] = ..., repo: _Optional[str] = ..., message: _Optional[str] = ..., endpoint: _Optional[str] = ..., token: _Optional[str] = ..., include: _Optional[_Iterable[str]] = ..., exclude: _Optional[_Iterable[str]] = ..., allow_unsafe_files: bool = ...) -> None: ...

class PublishEvent(_message.Message):
    __slots__ = ("progress", "done")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    progress: Progress
    done: Published
    def __init__(self, progress: _Optional[_Union[Progress, _Mapping]] = ..., done: _Optional[_Union[Published, _Mapping]] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("phase", "bytes_done", "bytes_total", "item", "place")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    BYTES_DONE_FIELD_NUMBER: _ClassVar[int]
    BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    ITEM_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    phase: str
    bytes_done: int
    bytes_total: int
    item: str
    place: int
    def __init__(self, phase: _Optional[str] = ..., bytes_done: _Optional[int] = ..., bytes_total: _Optional[int] = ..., item: _Optional[str] = ..., place: _Optional[int] = ...) -> None: ...

class Published(_message.Message):
    __slots__ = ("repo", "revision", "ref", "epoch", "number", "files", "bytes", "key_created", "publisher", "unserved", "card_problems", "scan", "imported_from", "unchanged", "bytes_fetched")
    REPO_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    REF_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    KEY_CREATED_FIELD_NUMBER: _ClassVar[int]
    PUBLISHER_FIELD_NUMBER: _ClassVar[int]
    UNSERVED_FIELD_NUMBER: _ClassVar[int]
    CARD_PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    SCAN_FIELD_NUMBER: _ClassVar[int]
    IMPORTED_FROM_FIELD_NUMBER: _ClassVar[int]
    UNCHANGED_FIELD_NUMBER: _ClassVar[int]
    BYTES_FETCHED_FIELD_NUMBER: _ClassVar[int]
    repo: str
    revision: str
    ref: str
    epoch: int
    number: int
    files: int
    bytes: int
    key_created: bool
    publisher: str
    unserved: str
    card_problems: _containers.RepeatedCompositeFieldContainer[_catalogue_pb2.CardProblem]
    scan: _import_pb2.Scanned
    imported_from: str
    unchanged: bool
    bytes_fetched: int
    def __init__(self, repo: _Optional[str] = ..., revision: _Optional[str] = ..., ref: _Optional[str] = ..., epoch: _Optional[int] = ..., number: _Optional[int] = ..., files: _Optional[int] = ..., bytes: _Optional[int] = ..., key_created: bool = ..., publisher: _Optional[str] = ..., unserved: _Optional[str] = ..., card_problems: _Optional[_Iterable[_Union[_catalogue_pb2.CardProblem, _Mapping]]] = ..., scan: _Optional[_Union[_import_pb2.Scanned, _Mapping]] = ..., imported_from: _Optional[str] = ..., unchanged: bool = ..., bytes_fetched: _Optional[int] = ...) -> None: ...

class ResolveRequest(_message.Message):
    __slots__ = ("repo",)
    REPO_FIELD_NUMBER: _ClassVar[int]
    repo: str
    def __init__(self, repo: _Optional[str] = ...) -> None: ...

class ResolveResponse(_message.Message):
    __slots__ = ("repo", "publisher", "kind", "name", "ref", "revision", "epoch", "number", "warning")
    REPO_FIELD_NUMBER: _ClassVar[int]
    PUBLISHER_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    REF_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    WARNING_FIELD_NUMBER: _ClassVar[int]
    repo: str
    publisher: str
    kind: str
    name: str
    ref: str
    revision: str
    epoch: int
    number: int
    warning: str
    def __init__(self, repo: _Optional[str] = ..., publisher: _Optional[str] = ..., kind: _Optional[str] = ..., name: _Optional[str] = ..., ref: _Optional[str] = ..., revision: _Optional[str] = ..., epoch: _Optional[int] = ..., number: _Optional[int] = ..., warning: _Optional[str] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ("prefix", "limit", "page_token")
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    prefix: str
    limit: int
    page_token: str
    def __init__(self, prefix: _Optional[str] = ..., limit: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListResponse(_message.Message):
    __slots__ = ("repos", "next_page_token")
    REPOS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    repos: _containers.RepeatedCompositeFieldContainer[Repo]
    next_page_token: str
    def __init__(self, repos: _Optional[_Iterable[_Union[Repo, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class Repo(_message.Message):
    __slots__ = ("repo", "kind", "publisher", "handle", "name", "revision", "bytes", "files", "architecture", "parameters", "quantisation", "license", "created_ms", "held")
    REPO_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    PUBLISHER_FIELD_NUMBER: _ClassVar[int]
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    QUANTISATION_FIELD_NUMBER: _ClassVar[int]
    LICENSE_FIELD_NUMBER: _ClassVar[int]
    CREATED_MS_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    repo: str
    kind: str
    publisher: str
    handle: str
    name: str
    revision: str
    bytes: int
    files: int
    architecture: str
    parameters: int
    quantisation: str
    license: str
    created_ms: int
    held: bool
    def __init__(self, repo: _Optional[str] = ..., kind: _Optional[str] = ..., publisher: _Optional[str] = ..., handle: _Optional[str] = ..., name: _Optional[str] = ..., revision: _Optional[str] = ..., bytes: _Optional[int] = ..., files: _Optional[int] = ..., architecture: _Optional[str] = ..., parameters: _Optional[int] = ..., quantisation: _Optional[str] = ..., license: _Optional[str] = ..., created_ms: _Optional[int] = ..., held: bool = ...) -> None: ...

class ShowRequest(_message.Message):
    __slots__ = ("repo",)
    REPO_FIELD_NUMBER: _ClassVar[int]
    repo: str
    def __init__(self, repo: _Optional[str] = ...) -> None: ...

class ShowResponse(_message.Message):
    __slots__ = ("repo", "refs", "files", "model", "holders", "message", "parents", "warning", "tensors", "metadata", "adapter", "card", "advisories", "attestations")
    REPO_FIELD_NUMBER: _ClassVar[int]
    REFS_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    HOLDERS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    PARENTS_FIELD_NUMBER: _ClassVar[int]
    WARNING_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    CARD_FIELD_NUMBER: _ClassVar[int]
    ADVISORIES_FIELD_NUMBER: _ClassVar[int]
    ATTESTATIONS_FIELD_NUMBER: _ClassVar[int]
    repo: Repo
    refs: _containers.RepeatedCompositeFieldContainer[Ref]
    files: _containers.RepeatedCompositeFieldContainer[File]
    model: Model
    holders: _containers.RepeatedScalarFieldContainer[str]
    message: str
    parents: _containers.RepeatedScalarFieldContainer[str]
    warning: str
    tensors: int
    metadata: _containers.RepeatedCompositeFieldContainer[Entry]
    adapter: Adapter
    card: _catalogue_pb2.Card
    advisories: _containers.RepeatedCompositeFieldContainer[_history_pb2.Advisory]
    attestations: _containers.RepeatedCompositeFieldContainer[_history_pb2.Attestation]
    def __init__(self, repo: _Optional[_Union[Repo, _Mapping]] = ..., refs: _Optional[_Iterable[_Union[Ref, _Mapping]]] = ..., files: _Optional[_Iterable[_Union[File, _Mapping]]] = ..., model: _Optional[_Union[Model, _Mapping]] = ..., holders: _Optional[_Iterable[str]] = ..., message: _Optional[str] = ..., parents: _Optional[_Iterable[str]] = ..., warning: _Optional[str] = ..., tensors: _Optional[int] = ..., metadata: _Optional[_Iterable[_Union[Entry, _Mapping]]] = ..., adapter: _Optional[_Union[Adapter, _Mapping]] = ..., card: _Optional[_Union[_catalogue_pb2.Card, _Mapping]] = ..., advisories: _Optional[_Iterable[_Union[_history_pb2.Advisory, _Mapping]]] = ..., attestations: _Optional[_Iterable[_Union[_history_pb2.Attestation, _Mapping]]] = ...) -> None: ...

class Entry(_message.Message):
    __slots__ = ("key", "value")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    key: str
    value: str
    def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...

class Adapter(_message.Message):
    __slots__ = ("base_model", "rank", "alpha", "rank_stabilised", "modules", "served")
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    RANK_STABILISED_FIELD_NUMBER: _ClassVar[int]
    MODULES_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    base_model: str
    rank: int
    alpha: float
    rank_stabilised: bool
    modules: _containers.RepeatedScalarFieldContainer[str]
    served: bool
    def __init__(self, base_model: _Optional[str] = ..., rank: _Optional[int] = ..., alpha: _Optional[float] = ..., rank_stabilised: bool = ..., modules: _Optional[_Iterable[str]] = ..., served: bool = ...) -> None: ...

class Ref(_message.Message):
    __slots__ = ("name", "revision", "epoch", "number", "tag", "ambiguous")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TAG_FIELD_NUMBER: _ClassVar[int]
    AMBIGUOUS_FIELD_NUMBER: _ClassVar[int]
    name: str
    revision: str
    epoch: int
    number: int
    tag: bool
    ambiguous: bool
    def __init__(self, name: _Optional[str] = ..., revision: _Optional[str] = ..., epoch: _Optional[int] = ..., number: _Optional[int] = ..., tag: bool = ..., ambiguous: bool = ...) -> None: ...

class File(_message.Message):
    __slots__ = ("path", "size", "digests")
    PATH_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    path: str
    size: int
    digests: _containers.RepeatedCompositeFieldContainer[Digest]
    def __init__(self, path: _Optional[str] = ..., size: _Optional[int] = ..., digests: _Optional[_Iterable[_Union[Digest, _Mapping]]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("architecture", "layers", "width", "heads", "kv_heads", "vocabulary", "context_max", "served")
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    KV_HEADS_FIELD_NUMBER: _ClassVar[int]
    VOCABULARY_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_MAX_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    architecture: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    vocabulary: int
    context_max: int
    served: bool
    def __init__(self, architecture: _Optional[str] = ..., layers: _Optional[int] = ..., width: _Optional[int] = ..., heads: _Optional[int] = ..., kv_heads: _Optional[int] = ..., vocabulary: _Optional[int] = ..., context_max: _Optional[int] = ..., served: bool = ...) -> None: ...

class PullRequest(_message.Message):
    __slots__ = ("repo", "to", "include", "layers_from", "layers_to", "link", "despite")
    REPO_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FROM_FIELD_NUMBER: _ClassVar[int]
    LAYERS_TO_FIELD_NUMBER: _ClassVar[int]
    LINK_FIELD_NUMBER: _ClassVar[int]
    DESPITE_FIELD_NUMBER: _ClassVar[int]
    repo: str
    to: str
    include: _containers.RepeatedScalarFieldContainer[str]
    layers_from: int
    layers_to: int
    link: bool
    despite: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, repo: _Optional[str] = ..., to: _Optional[str] = ..., include: _Optional[_Iterable[str]] = ..., layers_from: _Optional[int] = ..., layers_to: _Optional[int] = ..., link: bool = ..., despite: _Optional[_Iterable[str]] = ...) -> None: ...

class PullEvent(_message.Message):
    __slots__ = ("progress", "done")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    progress: Progress
    done: Pulled
    def __init__(self, progress: _Optional[_Union[Progress, _Mapping]] = ..., done: _Optional[_Union[Pulled, _Mapping]] = ...) -> None: ...

class Pulled(_message.Message):
    __slots__ = ("repo", "revision", "bytes_total", "bytes_needed", "bytes_local", "bytes_fetched", "bytes_overhead", "bytes_from", "seconds", "path", "files", "advisories", "files_shared", "commit")
    REPO_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    BYTES_NEEDED_FIELD_NUMBER: _ClassVar[int]
    BYTES_LOCAL_FIELD_NUMBER: _ClassVar[int]
    BYTES_FETCHED_FIELD_NUMBER: _ClassVar[int]
    BYTES_OVERHEAD_FIELD_NUMBER: _ClassVar[int]
    BYTES_FROM_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    ADVISORIES_FIELD_NUMBER: _ClassVar[int]
    FILES_SHARED_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    repo: str
    revision: str
    bytes_total: int
    bytes_needed: int
    bytes_local: int
    bytes_fetched: int
    bytes_overhead: int
    bytes_from: _containers.RepeatedCompositeFieldContainer[BytesFrom]
    seconds: float
    path: str
    files: int
    advisories: _containers.RepeatedCompositeFieldContainer[_history_pb2.Advisory]
    files_shared: int
    commit: str
    def __init__(self, repo: _Optional[str] = ..., revision: _Optional[str] = ..., bytes_total: _Optional[int] = ..., bytes_needed: _Optional[int] = ..., bytes_local: _Optional[int] = ..., bytes_fetched: _Optional[int] = ..., bytes_overhead: _Optional[int] = ..., bytes_from: _Optional[_Iterable[_Union[BytesFrom, _Mapping]]] = ..., seconds: _Optional[float] = ..., path: _Optional[str] = ..., files: _Optional[int] = ..., advisories: _Optional[_Iterable[_Union[_history_pb2.Advisory, _Mapping]]] = ..., files_shared: _Optional[int] = ..., commit: _Optional[str] = ...) -> None: ...

class BytesFrom(_message.Message):
    __slots__ = ("node", "bytes")
    NODE_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    node: str
    bytes: int
    def __init__(self, node: _Optional[str] = ..., bytes: _Optional[int] = ...) -> None: ...

class ReadBlobRequest(_message.Message):
    __slots__ = ("hash", "file", "offset", "length")
    HASH_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    hash: str
    file: FileOf
    offset: int
    length: int
    def __init__(self, hash: _Optional[str] = ..., file: _Optional[_Union[FileOf, _Mapping]] = ..., offset: _Optional[int] = ..., length: _Optional[int] = ...) -> None: ...

class FileOf(_message.Message):
    __slots__ = ("repo", "path")
    REPO_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    repo: str
    path: str
    def __init__(self, repo: _Optional[str] = ..., path: _Optional[str] = ...) -> None: ...

class ReadBlobResponse(_message.Message):
    __slots__ = ("data", "offset", "total")
    DATA_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    offset: int
    total: int
    def __init__(self, data: _Optional[bytes] = ..., offset: _Optional[int] = ..., total: _Optional[int] = ...) -> None: ...

class VerifyRequest(_message.Message):
    __slots__ = ("repo",)
    REPO_FIELD_NUMBER: _ClassVar[int]
    repo: str
    def __init__(self, repo: _Optional[str] = ...) -> None: ...

class VerifyEvent(_message.Message):
    __slots__ = ("progress", "done")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    progress: Progress
    done: Verified
    def __init__(self, progress: _Optional[_Union[Progress, _Mapping]] = ..., done: _Optional[_Union[Verified, _Mapping]] = ...) -> None: ...

class Verified(_message.Message):
    __slots__ = ("repo", "revision", "ok", "files", "bytes", "bad")
    REPO_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    OK_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    BAD_FIELD_NUMBER: _ClassVar[int]
    repo: str
    revision: str
    ok: bool
    files: int
    bytes: int
    bad: _containers.RepeatedCompositeFieldContainer[BadFile]
    def __init__(self, repo: _Optional[str] = ..., revision: _Optional[str] = ..., ok: bool = ..., files: _Optional[int] = ..., bytes: _Optional[int] = ..., bad: _Optional[_Iterable[_Union[BadFile, _Mapping]]] = ...) -> None: ...

class BadFile(_message.Message):
    __slots__ = ("path", "why", "bytes_missing")
    PATH_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    BYTES_MISSING_FIELD_NUMBER: _ClassVar[int]
    path: str
    why: str
    bytes_missing: int
    def __init__(self, path: _Optional[str] = ..., why: _Optional[str] = ..., bytes_missing: _Optional[int] = ...) -> None: ...

class MirrorAddRequest(_message.Message):
    __slots__ = ("pattern", "rules")
    PATTERN_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    pattern: str
    rules: MirrorRules
    def __init__(self, pattern: _Optional[str] = ..., rules: _Optional[_Union[MirrorRules, _Mapping]] = ...) -> None: ...

class MirrorRules(_message.Message):
    __slots__ = ("kinds", "licenses", "tags", "bytes_max", "copies", "priority", "quota_bytes", "hours", "tasks")
    KINDS_FIELD_NUMBER: _ClassVar[int]
    LICENSES_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    QUOTA_BYTES_FIELD_NUMBER: _ClassVar[int]
    HOURS_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    kinds: _containers.RepeatedScalarFieldContainer[str]
    licenses: _containers.RepeatedScalarFieldContainer[str]
    tags: _containers.RepeatedScalarFieldContainer[str]
    bytes_max: int
    copies: int
    priority: int
    quota_bytes: int
    hours: str
    tasks: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, kinds: _Optional[_Iterable[str]] = ..., licenses: _Optional[_Iterable[str]] = ..., tags: _Optional[_Iterable[str]] = ..., bytes_max: _Optional[int] = ..., copies: _Optional[int] = ..., priority: _Optional[int] = ..., quota_bytes: _Optional[int] = ..., hours: _Optional[str] = ..., tasks: _Optional[_Iterable[str]] = ...) -> None: ...

class MirrorPolicy(_message.Message):
    __slots__ = ("pattern", "rules")
    PATTERN_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    pattern: str
    rules: MirrorRules
    def __init__(self, pattern: _Optional[str] = ..., rules: _Optional[_Union[MirrorRules, _Mapping]] = ...) -> None: ...

class MirrorAddResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class MirrorRemoveRequest(_message.Message):
    __slots__ = ("pattern",)
    PATTERN_FIELD_NUMBER: _ClassVar[int]
    pattern: str
    def __init__(self, pattern: _Optional[str] = ...) -> None: ...

class MirrorRemoveResponse(_message.Message):
    __slots__ = ("removed", "revisions", "bytes_freed")
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    REVISIONS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FREED_FIELD_NUMBER: _ClassVar[int]
    removed: bool
    revisions: int
    bytes_freed: int
    def __init__(self, removed: bool = ..., revisions: _Optional[int] = ..., bytes_freed: _Optional[int] = ...) -> None: ...

class MirrorListRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class MirrorListResponse(_message.Message):
    __slots__ = ("patterns", "repos", "policies", "bytes_per_day", "bytes_today")
    PATTERNS_FIELD_NUMBER: _ClassVar[int]
    REPOS_FIELD_NUMBER: _ClassVar[int]
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_DAY_FIELD_NUMBER: _ClassVar[int]
    BYTES_TODAY_FIELD_NUMBER: _ClassVar[int]
    patterns: _containers.RepeatedScalarFieldContainer[str]
    repos: _containers.RepeatedCompositeFieldContainer[MirroredRepo]
    policies: _containers.RepeatedCompositeFieldContainer[MirrorPolicy]
    bytes_per_day: int
    bytes_today: int
    def __init__(self, patterns: _Optional[_Iterable[str]] = ..., repos: _Optional[_Iterable[_Union[MirroredRepo, _Mapping]]] = ..., policies: _Optional[_Iterable[_Union[MirrorPolicy, _Mapping]]] = ..., bytes_per_day: _Optional[int] = ..., bytes_today: _Optional[int] = ...) -> None: ...

class MirroredRepo(_message.Message):
    __slots__ = ("repo", "revision", "state", "why", "bytes_total", "bytes_held", "bytes_from", "pattern", "copies_elsewhere")
    REPO_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    BYTES_HELD_FIELD_NUMBER: _ClassVar[int]
    BYTES_FROM_FIELD_NUMBER: _ClassVar[int]
    PATTERN_FIELD_NUMBER: _ClassVar[int]
    COPIES_ELSEWHERE_FIELD_NUMBER: _ClassVar[int]
    repo: str
    revision: str
    state: str
    why: str
    bytes_total: int
    bytes_held: int
    bytes_from: _containers.RepeatedCompositeFieldContainer[BytesFrom]
    pattern: str
    copies_elsewhere: int
    def __init__(self, repo: _Optional[str] = ..., revision: _Optional[str] = ..., state: _Optional[str] = ..., why: _Optional[str] = ..., bytes_total: _Optional[int] = ..., bytes_held: _Optional[int] = ..., bytes_from: _Optional[_Iterable[_Union[BytesFrom, _Mapping]]] = ..., pattern: _Optional[str] = ..., copies_elsewhere: _Optional[int] = ...) -> None: ...

class PlanRequest(_message.Message):
    __slots__ = ("repo", "stages", "context", "privacy", "adapter", "quantise", "kv")
    REPO_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    PRIVACY_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    QUANTISE_FIELD_NUMBER: _ClassVar[int]
    KV_FIELD_NUMBER: _ClassVar[int]
    repo: str
    stages: int
    context: int
    privacy: str
    adapter: str
    quantise: str
    kv: str
    def __init__(self, repo: _Optional[str] = ..., stages: _Optional[int] = ..., context: _Optional[int] = ..., privacy: _Optional[str] = ..., adapter: _Optional[str] = ..., quantise: _Optional[str] = ..., kv: _Optional[str] = ...) -> None: ...

class PlanResponse(_message.Message):
    __slots__ = ("repo", "revision", "stages", "rejected", "predicted_ttft_ms", "predicted_tokens_per_s", "deaths", "predicted_ready_ms")
    REPO_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_TTFT_MS_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    DEATHS_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_READY_MS_FIELD_NUMBER: _ClassVar[int]
    repo: str
    revision: str
    stages: _containers.RepeatedCompositeFieldContainer[StagePlan]
    rejected: _containers.RepeatedCompositeFieldContainer[RejectedNode]
    predicted_ttft_ms: float
    predicted_tokens_per_s: float
    deaths: _containers.RepeatedCompositeFieldContainer[DeathOutcome]
    predicted_ready_ms: float
    def __init__(self, repo: _Optional[str] = ..., revision: _Optional[str] = ..., stages: _Optional[_Iterable[_Union[StagePlan, _Mapping]]] = ..., rejected: _Optional[_Iterable[_Union[RejectedNode, _Mapping]]] = ..., predicted_ttft_ms: _Optional[float] = ..., predicted_tokens_per_s: _Optional[float] = ..., deaths: _Optional[_Iterable[_Union[DeathOutcome, _Mapping]]] = ..., predicted_ready_ms: _Optional[float] = ...) -> None: ...

class StagePlan(_message.Message):
    __slots__ = ("node", "first_layer", "end_layer", "bytes", "ms", "embedding", "head")
    NODE_FIELD_NUMBER: _ClassVar[int]
    FIRST_LAYER_FIELD_NUMBER: _ClassVar[int]
    END_LAYER_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    MS_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    node: str
    first_layer: int
    end_layer: int
    bytes: int
    ms: float
    embedding: bool
    head: bool
    def __init__(self, node: _Optional[str] = ..., first_layer: _Optional[int] = ..., end_layer: _Optional[int] = ..., bytes: _Optional[int] = ..., ms: _Optional[float] = ..., embedding: bool = ..., head: bool = ...) -> None: ...

class RejectedNode(_message.Message):
    __slots__ = ("node", "reason", "why")
    NODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    node: str
    reason: str
    why: str
    def __init__(self, node: _Optional[str] = ..., reason: _Optional[str] = ..., why: _Optional[str] = ...) -> None: ...

class DeathOutcome(_message.Message):
    __slots__ = ("node", "survivable", "what")
    NODE_FIELD_NUMBER: _ClassVar[int]
    SURVIVABLE_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    node: str
    survivable: bool
    what: str
    def __init__(self, node: _Optional[str] = ..., survivable: bool = ..., what: _Optional[str] = ...) -> None: ...

class ChatMessage(_message.Message):
    __slots__ = ("role", "content")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("repo", "prompt", "messages", "max_tokens", "temperature", "top_k", "top_p", "seed", "stop", "stages", "raw", "privacy", "repetition_penalty", "token_ids", "adapter", "quantise", "generated", "min_p", "frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "n", "sample_index", "json", "json_schema", "regex", "grammar", "kv")
    REPO_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    PRIVACY_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    QUANTISE_FIELD_NUMBER: _ClassVar[int]
    GENERATED_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    LOGIT_BIAS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_INDEX_FIELD_NUMBER: _ClassVar[int]
    JSON_FIELD_NUMBER: _ClassVar[int]
    JSON_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    REGEX_FIELD_NUMBER: _ClassVar[int]
    GRAMMAR_FIELD_NUMBER: _ClassVar[int]
    KV_FIELD_NUMBER: _ClassVar[int]
    repo: str
    prompt: str
    messages: _containers.RepeatedCompositeFieldContainer[ChatMessage]
    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    stages: int
    raw: bool
    privacy: str
    repetition_penalty: float
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    adapter: str
    quantise: str
    generated: int
    min_p: float
    frequency_penalty: float
    presence_penalty: float
    logit_bias: _containers.RepeatedCompositeFieldContainer[LogitBias]
    logprobs: int
    n: int
    sample_index: int
    json: bool
    json_schema: str
    regex: str
    grammar: str
    kv: str
    def __init__(self, repo: _Optional[str] = ..., prompt: _Optional[str] = ..., messages: _Optional[_Iterable[_Union[ChatMessage, _Mapping]]] = ..., max_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., seed: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., stages: _Optional[int] = ..., raw: bool = ..., privacy: _Optional[str] = ..., repetition_penalty: _Optional[float] = ..., token_ids: _Optional[_Iterable[int]] = ..., adapter: _Optional[str] = ..., quantise: _Optional[str] = ..., generated: _Optional[int] = ..., min_p: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., logit_bias: _Optional[_Iterable[_Union[LogitBias, _Mapping]]] = ..., logprobs: _Optional[int] = ..., n: _Optional[int] = ..., sample_index: _Optional[int] = ..., json: bool = ..., json_schema: _Optional[str] = ..., regex: _Optional[str] = ..., grammar: _Optional[str] = ..., kv: _Optional[str] = ...) -> None: ...

class LogitBias(_message.Message):
    __slots__ = ("id", "bias")
    ID_FIELD_NUMBER: _ClassVar[int]
    BIAS_FIELD_NUMBER: _ClassVar[int]
    id: int
    bias: float
    def __init__(self, id: _Optional[int] = ..., bias: _Optional[float] = ...) -> None: ...

class GenerateEvent(_message.Message):
    __slots__ = ("started", "token", "recovery", "done", "progress", "choice")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    RECOVERY_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    started: Started
    token: Token
    recovery: Recovery
    done: Done
    progress: Progress
    choice: int
    def __init__(self, started: _Optional[_Union[Started, _Mapping]] = ..., token: _Optional[_Union[Token, _Mapping]] = ..., recovery: _Optional[_Union[Recovery, _Mapping]] = ..., done: _Optional[_Union[Done, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., choice: _Optional[int] = ...) -> None: ...

class Started(_message.Message):
    __slots__ = ("session", "revision", "seed", "plan", "resume_token", "prompt_tokens", "adapter")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    RESUME_TOKEN_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    session: str
    revision: str
    seed: int
    plan: PlanResponse
    resume_token: str
    prompt_tokens: int
    adapter: str
    def __init__(self, session: _Optional[str] = ..., revision: _Optional[str] = ..., seed: _Optional[int] = ..., plan: _Optional[_Union[PlanResponse, _Mapping]] = ..., resume_token: _Optional[str] = ..., prompt_tokens: _Optional[int] = ..., adapter: _Optional[str] = ...) -> None: ...

class Token(_message.Message):
    __slots__ = ("id", "text", "index", "logprobs")
    ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    id: int
    text: str
    index: int
    logprobs: Logprobs
    def __init__(self, id: _Optional[int] = ..., text: _Optional[str] = ..., index: _Optional[int] = ..., logprobs: _Optional[_Union[Logprobs, _Mapping]] = ...) -> None: ...

class Logprobs(_message.Message):
    __slots__ = ("logprob", "best", "bytes")
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    BEST_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    logprob: float
    best: _containers.RepeatedCompositeFieldContainer[Likely]
    bytes: bytes
    def __init__(self, logprob: _Optional[float] = ..., best: _Optional[_Iterable[_Union[Likely, _Mapping]]] = ..., bytes: _Optional[bytes] = ...) -> None: ...

class Likely(_message.Message):
    __slots__ = ("id", "logprob", "bytes")
    ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    id: int
    logprob: float
    bytes: bytes
    def __init__(self, id: _Optional[int] = ..., logprob: _Optional[float] = ..., bytes: _Optional[bytes] = ...) -> None: ...

class Recovery(_message.Message):
    __slots__ = ("node", "why", "stages", "pause_ms", "noticed_ms", "replanned_ms", "rebuilt_ms")
    NODE_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    PAUSE_MS_FIELD_NUMBER: _ClassVar[int]
    NOTICED_MS_FIELD_NUMBER: _ClassVar[int]
    REPLANNED_MS_FIELD_NUMBER: _ClassVar[int]
    REBUILT_MS_FIELD_NUMBER: _ClassVar[int]
    node: str
    why: str
    stages: _containers.RepeatedCompositeFieldContainer[StageReport]
    pause_ms: float
    noticed_ms: float
    replanned_ms: float
    rebuilt_ms: float
    def __init__(self, node: _Optional[str] = ..., why: _Optional[str] = ..., stages: _Optional[_Iterable[_Union[StageReport, _Mapping]]] = ..., pause_ms: _Optional[float] = ..., noticed_ms: _Optional[float] = ..., replanned_ms: _Optional[float] = ..., rebuilt_ms: _Optional[float] = ...) -> None: ...

class StageReport(_message.Message):
    __slots__ = ("node", "first_layer", "end_layer", "bytes_needed", "bytes_local", "bytes_fetched", "bytes_overhead", "step_ms")
    NODE_FIELD_NUMBER: _ClassVar[int]
    FIRST_LAYER_FIELD_NUMBER: _ClassVar[int]
    END_LAYER_FIELD_NUMBER: _ClassVar[int]
    BYTES_NEEDED_FIELD_NUMBER: _ClassVar[int]
    BYTES_LOCAL_FIELD_NUMBER: _ClassVar[int]
    BYTES_FETCHED_FIELD_NUMBER: _ClassVar[int]
    BYTES_OVERHEAD_FIELD_NUMBER: _ClassVar[int]
    STEP_MS_FIELD_NUMBER: _ClassVar[int]
    node: str
    first_layer: int
    end_layer: int
    bytes_needed: int
    bytes_local: int
    bytes_fetched: int
    bytes_overhead: int
    step_ms: float
    def __init__(self, node: _Optional[str] = ..., first_layer: _Optional[int] = ..., end_layer: _Optional[int] = ..., bytes_needed: _Optional[int] = ..., bytes_local: _Optional[int] = ..., bytes_fetched: _Optional[int] = ..., bytes_overhead: _Optional[int] = ..., step_ms: _Optional[float] = ...) -> None: ...

class Done(_message.Message):
    __slots__ = ("tokens", "text", "finish", "seed", "ttft_ms", "tokens_per_s", "stages", "replans", "recoveries", "pauses_ms", "prompt_tokens", "lap_ms", "cached_tokens", "evictions")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    TTFT_MS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    REPLANS_FIELD_NUMBER: _ClassVar[int]
    RECOVERIES_FIELD_NUMBER: _ClassVar[int]
    PAUSES_MS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LAP_MS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    EVICTIONS_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedScalarFieldContainer[int]
    text: str
    finish: str
    seed: int
    ttft_ms: float
    tokens_per_s: float
    stages: _containers.RepeatedCompositeFieldContainer[StageReport]
    replans: _containers.RepeatedCompositeFieldContainer[Replan]
    recoveries: int
    pauses_ms: _containers.RepeatedScalarFieldContainer[float]
    prompt_tokens: int
    lap_ms: float
    cached_tokens: int
    evictions: int
    def __init__(self, tokens: _Optional[_Iterable[int]] = ..., text: _Optional[str] = ..., finish: _Optional[str] = ..., seed: _Optional[int] = ..., ttft_ms: _Optional[float] = ..., tokens_per_s: _Optional[float] = ..., stages: _Optional[_Iterable[_Union[StageReport, _Mapping]]] = ..., replans: _Optional[_Iterable[_Union[Replan, _Mapping]]] = ..., recoveries: _Optional[int] = ..., pauses_ms: _Optional[_Iterable[float]] = ..., prompt_tokens: _Optional[int] = ..., lap_ms: _Optional[float] = ..., cached_tokens: _Optional[int] = ..., evictions: _Optional[int] = ...) -> None: ...

class Replan(_message.Message):
    __slots__ = ("stages",)
    STAGES_FIELD_NUMBER: _ClassVar[int]
    stages: _containers.RepeatedCompositeFieldContainer[StageReport]
    def __init__(self, stages: _Optional[_Iterable[_Union[StageReport, _Mapping]]] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("node_id", "peer_id", "version", "realm", "uptime_s", "repos", "bytes_stored", "sessions", "peers", "listen", "data", "http", "home")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REALM_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    REPOS_FIELD_NUMBER: _ClassVar[int]
    BYTES_STORED_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    LISTEN_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    HTTP_FIELD_NUMBER: _ClassVar[int]
    HOME_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    peer_id: str
    version: str
    realm: str
    uptime_s: float
    repos: int
    bytes_stored: int
    sessions: int
    peers: int
    listen: _containers.RepeatedScalarFieldContainer[str]
    data: str
    http: str
    home: str
    def __init__(self, node_id: _Optional[str] = ..., peer_id: _Optional[str] = ..., version: _Optional[str] = ..., realm: _Optional[str] = ..., uptime_s: _Optional[float] = ..., repos: _Optional[int] = ..., bytes_stored: _Optional[int] = ..., sessions: _Optional[int] = ..., peers: _Optional[int] = ..., listen: _Optional[_Iterable[str]] = ..., data: _Optional[str] = ..., http: _Optional[str] = ..., home: _Optional[str] = ...) -> None: ...

class PeersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PeersResponse(_message.Message):
    __slots__ = ("peers",)
    PEERS_FIELD_NUMBER: _ClassVar[int]
    peers: _containers.RepeatedCompositeFieldContainer[Peer]
    def __init__(self, peers: _Optional[_Iterable[_Union[Peer, _Mapping]]] = ...) -> None: ...

class Peer(_message.Message):
    __slots__ = ("node_id", "peer_id", "addresses", "last_seen_ms", "connected", "rtt_ms", "agent", "capacity", "grants")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_MS_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    RTT_MS_FIELD_NUMBER: _ClassVar[int]
    AGENT_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    GRANTS_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    peer_id: str
    addresses: _containers.RepeatedScalarFieldContainer[str]
    last_seen_ms: int
    connected: bool
    rtt_ms: float
    agent: str
    capacity: CapacityResponse
    grants: Grants
    def __init__(self, node_id: _Optional[str] = ..., peer_id: _Optional[str] = ..., addresses: _Optional[_Iterable[str]] = ..., last_seen_ms: _Optional[int] = ..., connected: bool = ..., rtt_ms: _Optional[float] = ..., agent: _Optional[str] = ..., capacity: _Optional[_Union[CapacityResponse, _Mapping]] = ..., grants: _Optional[_Union[Grants, _Mapping]] = ...) -> None: ...

class Grants(_message.Message):
    __slots__ = ("store", "compute", "train")
    STORE_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_FIELD_NUMBER: _ClassVar[int]
    TRAIN_FIELD_NUMBER: _ClassVar[int]
    store: str
    compute: str
    train: str
    def __init__(self, store: _Optional[str] = ..., compute: _Optional[str] = ..., train: _Optional[str] = ...) -> None: ...

class CapacityRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CapacityResponse(_message.Message):
    __slots__ = ("cpu", "cores", "memory_bytes", "level", "gpus", "measured", "stage_memory_bytes")
    CPU_FIELD_NUMBER: _ClassVar[int]
    CORES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    GPUS_FIELD_NUMBER: _ClassVar[int]
    MEASURED_FIELD_NUMBER: _ClassVar[int]
    STAGE_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    cpu: str
    cores: int
    memory_bytes: int
    level: str
    gpus: _containers.RepeatedCompositeFieldContainer[Gpu]
    measured: Measured
    stage_memory_bytes: int
    def __init__(self, cpu: _Optional[str] = ..., cores: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., level: _Optional[str] = ..., gpus: _Optional[_Iterable[_Union[Gpu, _Mapping]]] = ..., measured: _Optional[_Union[Measured, _Mapping]] = ..., stage_memory_bytes: _Optional[int] = ...) -> None: ...

class Gpu(_message.Message):
    __slots__ = ("name", "memory_bytes", "driver")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    DRIVER_FIELD_NUMBER: _ClassVar[int]
    name: str
    memory_bytes: int
    driver: str
    def __init__(self, name: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., driver: _Optional[str] = ...) -> None: ...

class Measured(_message.Message):
    __slots__ = ("bandwidth_gb_per_s", "gmacs_per_s")
    BANDWIDTH_GB_PER_S_FIELD_NUMBER: _ClassVar[int]
    GMACS_PER_S_FIELD_NUMBER: _ClassVar[int]
    bandwidth_gb_per_s: float
    gmacs_per_s: float
    def __init__(self, bandwidth_gb_per_s: _Optional[float] = ..., gmacs_per_s: _Optional[float] = ...) -> None: ...
