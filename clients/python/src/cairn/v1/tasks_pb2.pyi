from cairn.v1 import cairn_pb2 as _cairn_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DescribeRequest(_message.Message):
    __slots__ = ("repo", "privacy")
    REPO_FIELD_NUMBER: _ClassVar[int]
    PRIVACY_FIELD_NUMBER: _ClassVar[int]
    repo: str
    privacy: str
    def __init__(self, repo: _Optional[str] = ..., privacy: _Optional[str] = ...) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("repo", "revision", "task", "width", "tokens_max", "memory_bytes", "prompts", "nodes", "rejected")
    REPO_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    TOKENS_MAX_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    repo: str
    revision: str
    task: str
    width: int
    tokens_max: int
    memory_bytes: int
    prompts: _containers.RepeatedScalarFieldContainer[str]
    nodes: _containers.RepeatedCompositeFieldContainer[TaskNode]
    rejected: _containers.RepeatedCompositeFieldContainer[_cairn_pb2.RejectedNode]
    def __init__(self, repo: _Optional[str] = ..., revision: _Optional[str] = ..., task: _Optional[str] = ..., width: _Optional[int] = ..., tokens_max: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., prompts: _Optional[_Iterable[str]] = ..., nodes: _Optional[_Iterable[_Union[TaskNode, _Mapping]]] = ..., rejected: _Optional[_Iterable[_Union[_cairn_pb2.RejectedNode, _Mapping]]] = ...) -> None: ...

class TaskNode(_message.Message):
    __slots__ = ("node", "holds", "warm", "why")
    NODE_FIELD_NUMBER: _ClassVar[int]
    HOLDS_FIELD_NUMBER: _ClassVar[int]
    WARM_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    node: str
    holds: bool
    warm: bool
    why: str
    def __init__(self, node: _Optional[str] = ..., holds: bool = ..., warm: bool = ..., why: _Optional[str] = ...) -> None: ...

class EmbedRequest(_message.Message):
    __slots__ = ("repo", "texts", "privacy", "prompt")
    REPO_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    PRIVACY_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    repo: str
    texts: _containers.RepeatedScalarFieldContainer[str]
    privacy: str
    prompt: str
    def __init__(self, repo: _Optional[str] = ..., texts: _Optional[_Iterable[str]] = ..., privacy: _Optional[str] = ..., prompt: _Optional[str] = ...) -> None: ...

class EmbedEvent(_message.Message):
    __slots__ = ("started", "vectors", "lost", "done", "progress")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    started: EmbedStarted
    vectors: Vectors
    lost: TaskLost
    done: EmbedDone
    progress: _cairn_pb2.Progress
    def __init__(self, started: _Optional[_Union[EmbedStarted, _Mapping]] = ..., vectors: _Optional[_Union[Vectors, _Mapping]] = ..., lost: _Optional[_Union[TaskLost, _Mapping]] = ..., done: _Optional[_Union[EmbedDone, _Mapping]] = ..., progress: _Optional[_Union[_cairn_pb2.Progress, _Mapping]] = ...) -> None: ...

class EmbedStarted(_message.Message):
    __slots__ = ("repo", "revision", "node")
    REPO_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    repo: str
    revision: str
    node: str
    def __init__(self, repo: _Optional[str] = ..., revision: _Optional[str] = ..., node: _Optional[str] = ...) -> None: ...

class Vectors(_message.Message):
    __slots__ = ("first", "width", "values", "node")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    first: int
    width: int
    values: _containers.RepeatedScalarFieldContainer[float]
    node: str
    def __init__(self, first: _Optional[int] = ..., width: _Optional[int] = ..., values: _Optional[_Iterable[float]] = ..., node: _Optional[str] = ...) -> None: ...

class TaskLost(_message.Message):
    __slots__ = ("node", "reason", "why")
    NODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    node: str
    reason: str
    why: str
    def __init__(self, node: _Optional[str] = ..., reason: _Optional[str] = ..., why: _Optional[str] = ...) -> None: ...

class EmbedDone(_message.Message):
    __slots__ = ("repo", "revision", "texts", "width", "tokens", "truncated", "nodes", "lost", "seconds")
    REPO_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    repo: str
    revision: str
    texts: int
    width: int
    tokens: int
    truncated: int
    nodes: _containers.RepeatedScalarFieldContainer[str]
    lost: _containers.RepeatedCompositeFieldContainer[TaskLost]
    seconds: float
    def __init__(self, repo: _Optional[str] = ..., revision: _Optional[str] = ..., texts: _Optional[int] = ..., width: _Optional[int] = ..., tokens: _Optional[int] = ..., truncated: _Optional[int] = ..., nodes: _Optional[_Iterable[str]] = ..., lost: _Optional[_Iterable[_Union[TaskLost, _Mapping]]] = ..., seconds: _Optional[float] = ...) -> None: ...
