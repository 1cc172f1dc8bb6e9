from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Card(_message.Message):
    __slots__ = ("task", "library", "license", "languages", "base_models", "base_model_relation", "datasets", "tags", "text", "problems")
    TASK_FIELD_NUMBER: _ClassVar[int]
    LIBRARY_FIELD_NUMBER: _ClassVar[int]
    LICENSE_FIELD_NUMBER: _ClassVar[int]
    LANGUAGES_FIELD_NUMBER: _ClassVar[int]
    BASE_MODELS_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_RELATION_FIELD_NUMBER: _ClassVar[int]
    DATASETS_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    task: str
    library: str
    license: str
    languages: _containers.RepeatedScalarFieldContainer[str]
    base_models: _containers.RepeatedScalarFieldContainer[str]
    base_model_relation: str
    datasets: _containers.RepeatedScalarFieldContainer[str]
    tags: _containers.RepeatedScalarFieldContainer[str]
    text: str
    problems: _containers.RepeatedCompositeFieldContainer[CardProblem]
    def __init__(self, task: _Optional[str] = ..., library: _Optional[str] = ..., license: _Optional[str] = ..., languages: _Optional[_Iterable[str]] = ..., base_models: _Optional[_Iterable[str]] = ..., base_model_relation: _Optional[str] = ..., datasets: _Optional[_Iterable[str]] = ..., tags: _Optional[_Iterable[str]] = ..., text: _Optional[str] = ..., problems: _Optional[_Iterable[_Union[CardProblem, _Mapping]]] = ...) -> None: ...

class CardProblem(_message.Message):
    __slots__ = ("line", "field", "what", "error")
    LINE_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    line: int
    field: str
    what: str
    error: bool
    def __init__(self, line: _Optional[int] = ..., field: _Optional[str] = ..., what: _Optional[str] = ..., error: bool = ...) -> None: ...

class SearchRequest(_message.Message):
    __slots__ = ("query", "filters", "min_parameters", "max_parameters", "min_bytes", "max_bytes", "facets", "facet_limit", "sort", "limit", "cursor")
    QUERY_FIELD_NUMBER: _ClassVar[int]
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    MIN_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    MAX_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    MIN_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    FACETS_FIELD_NUMBER: _ClassVar[int]
    FACET_LIMIT_FIELD_NUMBER: _ClassVar[int]
    SORT_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    CURSOR_FIELD_NUMBER: _ClassVar[int]
    query: str
    filters: _containers.RepeatedCompositeFieldContainer[SearchFilter]
    min_parameters: int
    max_parameters: int
    min_bytes: int
    max_bytes: int
    facets: _containers.RepeatedScalarFieldContainer[str]
    facet_limit: int
    sort: str
    limit: int
    cursor: str
    def __init__(self, query: _Optional[str] = ..., filters: _Optional[_Iterable[_Union[SearchFilter, _Mapping]]] = ..., min_parameters: _Optional[int] = ..., max_parameters: _Optional[int] = ..., min_bytes: _Optional[int] = ..., max_bytes: _Optional[int] = ..., facets: _Optional[_Iterable[str]] = ..., facet_limit: _Optional[int] = ..., sort: _Optional[str] = ..., limit: _Optional[int] = ..., cursor: _Optional[str] = ...) -> None: ...

class SearchFilter(_message.Message):
    __slots__ = ("field", "values")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    field: str
    values: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, field: _Optional[str] = ..., values: _Optional[_Iterable[str]] = ...) -> None: ...

class SearchResponse(_message.Message):
    __slots__ = ("repos", "total", "facets", "next_cursor", "pending")
    REPOS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    FACETS_FIELD_NUMBER: _ClassVar[int]
    NEXT_CURSOR_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    repos: _containers.RepeatedCompositeFieldContainer[FoundRepo]
    total: int
    facets: _containers.RepeatedCompositeFieldContainer[Facet]
    next_cursor: str
    pending: int
    def __init__(self, repos: _Optional[_Iterable[_Union[FoundRepo, _Mapping]]] = ..., total: _Optional[int] = ..., facets: _Optional[_Iterable[_Union[Facet, _Mapping]]] = ..., next_cursor: _Optional[str] = ..., pending: _Optional[int] = ...) -> None: ...

class Facet(_message.Message):
    __slots__ = ("field", "values")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    field: str
    values: _containers.RepeatedCompositeFieldContainer[FacetValue]
    def __init__(self, field: _Optional[str] = ..., values: _Optional[_Iterable[_Union[FacetValue, _Mapping]]] = ...) -> None: ...

class FacetValue(_message.Message):
    __slots__ = ("value", "count")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    value: str
    count: int
    def __init__(self, value: _Optional[str] = ..., count: _Optional[int] = ...) -> None: ...

class FoundRepo(_message.Message):
    __slots__ = ("repo", "kind", "publisher", "handle", "name", "revision", "bytes", "files", "architecture", "parameters", "quantisation", "license", "created_ms", "held", "task", "library", "languages", "base_models", "tags")
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
    TASK_FIELD_NUMBER: _ClassVar[int]
    LIBRARY_FIELD_NUMBER: _ClassVar[int]
    LANGUAGES_FIELD_NUMBER: _ClassVar[int]
    BASE_MODELS_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
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
    task: str
    library: str
    languages: _containers.RepeatedScalarFieldContainer[str]
    base_models: _containers.RepeatedScalarFieldContainer[str]
    tags: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, repo: _Optional[str] = ..., kind: _Optional[str] = ..., publisher: _Optional[str] = ..., handle: _Optional[str] = ..., name: _Optional[str] = ..., revision: _Optional[str] = ..., bytes: _Optional[int] = ..., files: _Optional[int] = ..., architecture: _Optional[str] = ..., parameters: _Optional[int] = ..., quantisation: _Optional[str] = ..., license: _Optional[str] = ..., created_ms: _Optional[int] = ..., held: bool = ..., task: _Optional[str] = ..., library: _Optional[str] = ..., languages: _Optional[_Iterable[str]] = ..., base_models: _Optional[_Iterable[str]] = ..., tags: _Optional[_Iterable[str]] = ...) -> None: ...
