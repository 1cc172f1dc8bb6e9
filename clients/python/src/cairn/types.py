"""What calls return: plain, frozen, with units in the names. Not the wire's messages, which may grow fields that mean nothing
here. Every class is made from its message by `_of`."""

from __future__ import annotations

import base64
import struct
from dataclasses import dataclass, field
from typing import Iterable

from cairn.statements import Advisory, Attestation
from cairn.v1 import bundle_pb2 as bundles
from cairn.v1 import cairn_pb2 as pb
from cairn.v1 import catalogue_pb2 as catalogue
from cairn.v1 import import_pb2 as imports

# In a resume token, revision and seed stand before the prompt's ids.
_PROMPT_AT = 32 + 8
# After it, where there is one: its revision and a mark.
_ADAPTER_BYTES = 33


@dataclass(frozen=True)
class Progress:
    """How far a long call is: `phase` is hash, download, fetch, export, verify, load or bundle."""

    phase: str
    bytes_done: int
    bytes_total: int
    item: str

    @classmethod
    def _of(cls, m: pb.Progress | bundles.BundleProgress) -> Progress:
        if isinstance(m, bundles.BundleProgress):
            return cls("bundle", m.bytes_done, m.bytes_total, "")
        return cls(m.phase, m.bytes_done, m.bytes_total, m.item)


@dataclass(frozen=True)
class Repo:
    """A repo as the catalogue lists it. `held`: whole on the node that was asked."""

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

    @classmethod
    def _of(cls, m: pb.Repo) -> Repo:
        return cls(
            m.repo, m.kind, m.publisher, m.handle, m.name, m.revision, m.bytes, m.files, m.architecture, m.parameters,
            m.quantisation, m.license, m.created_ms, m.held,
        )


@dataclass(frozen=True)
class Ref:
    """What a branch or tag stands for."""

    name: str
    revision: str
    epoch: int
    number: int
    tag: bool
    ambiguous: bool

    @classmethod
    def _of(cls, m: pb.Ref) -> Ref:
        return cls(m.name, m.revision, m.epoch, m.number, m.tag, m.ambiguous)


@dataclass(frozen=True)
class File:
    """A file of a revision; digests as hex under "blake3", "sha256" and "git-sha1"."""

    path: str
    size: int
    digests: dict[str, str]

    @classmethod
    def _of(cls, m: pb.File) -> File:
        return cls(m.path, m.size, {digest.algorithm: digest.hex for digest in m.digests})


@dataclass(frozen=True)
class Model:
    """The shape of a language model. `served`: this mesh can run it over several nodes."""

    architecture: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    vocabulary: int
    context_max: int
    served: bool

    @classmethod
    def _of(cls, m: pb.Model) -> Model:
        return cls(m.architecture, m.layers, m.width, m.heads, m.kv_heads, m.vocabulary, m.context_max, m.served)


@dataclass(frozen=True)
class Adapter:
    """What an adapter says of itself; `base_model` is the trainer's name for it."""

    base_model: str
    rank: int
    alpha: float
    rank_stabilised: bool
    modules: list[str]
    served: bool

    @classmethod
    def _of(cls, m: pb.Adapter) -> Adapter:
        return cls(m.base_model, m.rank, m.alpha, m.rank_stabilised, list(m.modules), m.served)


@dataclass(frozen=True)
class CardProblem:
    """Something wrong with a card. `field` is empty when it is about all of it; `error`: something was left out for it."""

    line: int
    field: str
    what: str
    error: bool

    @classmethod
    def _of(cls, m: catalogue.CardProblem) -> CardProblem:
        return cls(m.line, m.field, m.what, m.error)


@dataclass(frozen=True)
class Card:
    """What a revision's README.md says of it. `base_models` and `datasets` are as the card names them."""

    task: str
    library: str
    license: str
    languages: list[str]
    base_models: list[str]
    base_model_relation: str
    datasets: list[str]
    tags: list[str]
    text: str
    problems: list[CardProblem]

    @classmethod
    def _of(cls, m: catalogue.Card) -> Card:
        return cls(
            m.task, m.library, m.license, list(m.languages), list(m.base_models), m.base_model_relation,
            list(m.datasets), list(m.tags), m.text, [CardProblem._of(problem) for problem in m.problems],
        )


@dataclass(frozen=True)
class FoundRepo(Repo):
    """A repo that a search found: what the catalogue lists of it, and what its card says."""

    task: str
    library: str
    languages: list[str]
    base_models: list[str]
    tags: list[str]

    @classmethod
    def _of(cls, m: catalogue.FoundRepo) -> FoundRepo:
        return cls(
            m.repo, m.kind, m.publisher, m.handle, m.name, m.revision, m.bytes, m.files, m.architecture, m.parameters,
            m.quantisation, m.license, m.created_ms, m.held, m.task, m.library, list(m.languages), list(m.base_models),
            list(m.tags),
        )


@dataclass(frozen=True)
class Found:
    """One page of a search. `total` is of all pages; `facets` maps a field to its values and how many repos have them, the most
    frequent first; `pending` repos are new or changed and not in the index yet."""

    repos: list[FoundRepo]
    total: int
    facets: dict[str, dict[str, int]]
    next_cursor: str
    pending: int

    @classmethod
    def _of(cls, m: catalogue.SearchResponse) -> Found:
        facets = {facet.field: {value.value: value.count for value in facet.values} for facet in m.facets}
        return cls([FoundRepo._of(repo) for repo in m.repos], m.total, facets, m.next_cursor, m.pending)


@dataclass(frozen=True)
class RepoDetails:
    """Everything known of one repo; `holders` are nodes that keep it whole."""

    repo: Repo
    refs: list[Ref]
    files: list[File]
    model: Model | None
    holders: list[str]
    message: str
    parents: list[str]
    tensors: int
    warning: str
    metadata: dict[str, str]
    adapter: Adapter | None
    card: Card | None = None
    advisories: list[Advisory] = field(default_factory=list)
    attestations: list[Attestation] = field(default_factory=list)

    @classmethod
    def _of(cls, m: pb.ShowResponse) -> RepoDetails:
        model = Model._of(m.model) if m.HasField("model") else None
        adapter = Adapter._of(m.adapter) if m.HasField("adapter") else None
        refs, files = [Ref._of(ref) for ref in m.refs], [File._of(file) for file in m.files]
        return cls(
            Repo._of(m.repo), refs, files, model, list(m.holders), m.message, list(m.parents), m.tensors, m.warning,
            {entry.key: entry.value for entry in m.metadata},
            adapter,
            Card._of(m.card) if m.HasField("card") else None,
            [Advisory._of(advisory) for advisory in m.advisories],
            [Attestation._of(attestation) for attestation in m.attestations],
        )


@dataclass(frozen=True)
class Resolved:
    """The revision that a name stands for."""

    repo: str
    publisher: str
    kind: str
    name: str
    ref: str
    revision: str
    epoch: int
    number: int
    warning: str

    @classmethod
    def _of(cls, m: pb.ResolveResponse) -> Resolved:
        return cls(m.repo, m.publisher, m.kind, m.name, m.ref, m.revision, m.epoch, m.number, m.warning)


@dataclass(frozen=True)
class Published:
    """What a publish made."""

    repo: str
    revision: str
    ref: str
    epoch: int
    number: int
    files: int
    bytes: int
    key_created: bool
    publisher: str
    unserved: str = ""
    """Why no node of this version computes the model; empty where they do."""
    card_problems: tuple[CardProblem, ...] = ()
    """What is wrong with the card."""
    verdict: str = ""
    """What the scan of its files found: "clean", "code" or "unsafe"; empty if `unchanged`."""
    imported_from: str = ""
    """Of an import from a Hub: where from, with the commit."""
    unchanged: bool = False
    """Of an import: the newest revision holds these very files, and none was made."""
    bytes_fetched: int = 0
    """Of an import: bytes that came over the network."""

    @classmethod
    def _of(cls, m: pb.Published) -> Published:
        return cls(m.repo, m.revision, m.ref, m.epoch, m.number, m.files, m.bytes, m.key_created, m.publisher,
                   m.unserved, tuple(CardProblem._of(problem) for problem in m.card_problems),
                   m.scan.verdict, m.imported_from, m.unchanged, m.bytes_fetched)


@dataclass(frozen=True)
class ScannedFile:
    """What was found in one file."""

    path: str
    kind: str
    verdict: str
    """"clean", "code" (that clients may run) or "unsafe"."""
    findings: tuple[tuple[str, str], ...]
    """Verdict and what it is."""

    @classmethod
    def _of(cls, m: imports.ScannedFile) -> ScannedFile:
        return cls(m.path, m.kind, m.verdict, tuple((finding.verdict, finding.what) for finding in m.findings))


@dataclass(frozen=True)
class Scanned:
    """What files would do to whoever opens them. They are read, never loaded."""

    verdict: str
    """The gravest of all files."""
    summary: str
    files: tuple[ScannedFile, ...]
    repo: str = ""
    revision: str = ""

    @classmethod
    def _of(cls, m: imports.Scanned, files: Iterable[imports.ScannedFile]) -> Scanned:
        return cls(m.verdict, m.summary, tuple(ScannedFile._of(file) for file in files), m.repo, m.revision)


@dataclass(frozen=True)
class Bundled:
    """What is in a bundle, and, after it was applied, what of it was not here."""

    records: int
    revisions: int
    blobs: int
    bytes: int
    """Of blobs."""
    new_records: int
    new_blobs: int
    new_bytes: int
    refused: tuple[str, ...]
    """Records that were left out, with the reason; only where that was asked for."""
    file_bytes: int

    @classmethod
    def _of(cls, m: bundles.Bundled) -> Bundled:
        return cls(
            m.records, m.revisions, m.blobs, m.bytes, m.new_records, m.new_blobs, m.new_bytes, tuple(m.refused), m.file_bytes
        )


@dataclass(frozen=True)
class Pulled:
    """What a pull brought: needed = local + fetched; `bytes_from` sums to fetched; `bytes_overhead` travelled besides (hashes)."""

    repo: str
    revision: str
    bytes_total: int
    bytes_needed: int
    bytes_local: int
    bytes_fetched: int
    bytes_overhead: int
    bytes_from: dict[str, int]
    seconds: float
    path: str
    files: int

    @classmethod
    def _of(cls, m: pb.Pulled) -> Pulled:
        return cls(
            m.repo, m.revision, m.bytes_total, m.bytes_needed, m.bytes_local, m.bytes_fetched, m.bytes_overhead,
            {source.node: source.bytes for source in m.bytes_from}, m.seconds, m.path, m.files,
        )


@dataclass(frozen=True)
class Verified:
    """What re-reading every byte and signature found.

    `bad` is path → what is wrong with the file; `missing` is path → bytes of it that aren't here, as after a pull of some layers.
    `ok` only if both are empty.
    """

    repo: str
    revision: str
    ok: bool
    files: int
    bytes: int
    bad: dict[str, str]
    missing: dict[str, int]

    @classmethod
    def _of(cls, m: pb.Verified) -> Verified:
        return cls(
            m.repo, m.revision, m.ok, m.files, m.bytes,
            {bad.path: bad.why for bad in m.bad if not bad.bytes_missing},
            {bad.path: bad.bytes_missing for bad in m.bad if bad.bytes_missing},
        )


@dataclass(frozen=True)
class StagePlan:
    """The layers [first, end) that one node would compute."""

    node: str
    first_layer: int
    end_layer: int
    bytes: int
    ms: float
    embedding: bool
    head: bool

    @classmethod
    def _of(cls, m: pb.StagePlan) -> StagePlan:
        return cls(m.node, m.first_layer, m.end_layer, m.bytes, m.ms, m.embedding, m.head)


@dataclass(frozen=True)
class RejectedNode:
    """A node that was not used, and why."""

    node: str
    reason: str
    why: str

    @classmethod
    def _of(cls, m: pb.RejectedNode) -> RejectedNode:
        return cls(m.node, m.reason, m.why)


@dataclass(frozen=True)
class DeathOutcome:
    """What one node's death would leave."""

    node: str
    survivable: bool
    what: str

    @classmethod
    def _of(cls, m: pb.DeathOutcome) -> DeathOutcome:
        return cls(m.node, m.survivable, m.what)


@dataclass(frozen=True)
class Plan:
    """Where a model's layers would go."""

    repo: str
    revision: str
    stages: list[StagePlan]
    rejected: list[RejectedNode]
    predicted_ttft_ms: float
    predicted_tokens_per_s: float
    predicted_ready_ms: float
    deaths: list[DeathOutcome]

    @classmethod
    def _of(cls, m: pb.PlanResponse) -> Plan:
        return cls(
            m.repo, m.revision, [StagePlan._of(stage) for stage in m.stages],
            [RejectedNode._of(node) for node in m.rejected], m.predicted_ttft_ms, m.predicted_tokens_per_s,
            m.predicted_ready_ms, [DeathOutcome._of(death) for death in m.deaths],
        )


@dataclass(frozen=True)
class Likely:
    """A token that might have been chosen; `bytes` may be half a character, and are empty for a special token."""

    id: int
    logprob: float
    bytes: bytes

    @property
    def text(self) -> str:
        """Its bytes as text, U+FFFD for what is none."""
        return self.bytes.decode("utf-8", "replace")


@dataclass(frozen=True)
class Token:
    """One token; `text` holds whole characters only and may be empty. `choice` says which answer it belongs to.

    `logprob` and `best` (the likeliest first) are there if they were asked for: the model's own, before temperature, penalties,
    biases and grammars.
    """

    id: int
    text: str
    index: int
    choice: int = 0
    logprob: float | None = None
    best: tuple[Likely, ...] = ()
    bytes: bytes = b""

    @classmethod
    def _of(cls, m: pb.Token, choice: int = 0) -> Token:
        if not m.HasField("logprobs"):
            return cls(m.id, m.text, m.index, choice)
        best = tuple(Likely(one.id, one.logprob, one.bytes) for one in m.logprobs.best)
        return cls(m.id, m.text, m.index, choice, m.logprobs.logprob, best, m.logprobs.bytes)


@dataclass(frozen=True)
class StageReport:
    """What one stage needed, where it got it, and its mean time for a token after the first (0 while unknown)."""

    node: str
    first_layer: int
    end_layer: int
    bytes_needed: int
    bytes_local: int
    bytes_fetched: int
    bytes_overhead: int
    step_ms: float

    @classmethod
    def _of(cls, m: pb.StageReport) -> StageReport:
        return cls(
            m.node, m.first_layer, m.end_layer, m.bytes_needed, m.bytes_local, m.bytes_fetched, m.bytes_overhead,
            m.step_ms,
        )


@dataclass(frozen=True)
class Started:
    """What a generation begins with."""

    session: str
    revision: str
    seed: int
    plan: Plan
    resume_token: str
    prompt_tokens: int
    adapter: str

    @classmethod
    def _of(cls, m: pb.Started) -> Started:
        return cls(m.session, m.revision, m.seed, Plan._of(m.plan), m.resume_token, m.prompt_tokens, m.adapter)

    @property
    def prompt_ids(self) -> list[int]:
        """The ids of the prompt, as the model's tokenizer made them; out of the resume token."""
        ids = base64.urlsafe_b64decode(self.resume_token + "=" * (-len(self.resume_token) % 4))[_PROMPT_AT:]
        if len(ids) % 4 == 1:  # an adapter's revision and a mark follow
            ids = ids[:-_ADAPTER_BYTES]
        return [id for (id,) in struct.iter_unpack("<I", ids)]


@dataclass(frozen=True)
class Recovery:
    """A stage was lost and replaced; no token is wrong or missing."""

    node: str
    why: str
    stages: list[StageReport]
    pause_ms: float

    @classmethod
    def _of(cls, m: pb.Recovery) -> Recovery:
        return cls(m.node, m.why, [StageReport._of(stage) for stage in m.stages], m.pause_ms)


@dataclass(frozen=True)
class Result:
    """A whole generation: `finish` is stop, length or cancelled; `tokens` has the end token, `text` has not.

    `lap_ms` is the median time from one token to the next. `cached_tokens` of the prompt were computed for an earlier request that
    began alike; `evictions` counts how often keys and values made room for older sessions and were computed again.
    """

    text: str
    tokens: list[int]
    finish: str
    seed: int
    prompt_tokens: int
    ttft_ms: float
    tokens_per_s: float
    stages: list[StageReport]
    recoveries: int
    pauses_ms: list[float]
    lap_ms: float
    cached_tokens: int = 0
    evictions: int = 0

    @classmethod
    def _of(cls, m: pb.Done) -> Result:
        return cls(
            m.text, list(m.tokens), m.finish, m.seed, m.prompt_tokens, m.ttft_ms, m.tokens_per_s,
            [StageReport._of(stage) for stage in m.stages], m.recoveries, list(m.pauses_ms),
            m.lap_ms, m.cached_tokens, m.evictions,
        )


@dataclass(frozen=True)
class Gpu:
    """A graphics processor."""

    name: str
    memory_bytes: int
    driver: str

    @classmethod
    def _of(cls, m: pb.Gpu) -> Gpu:
        return cls(m.name, m.memory_bytes, m.driver)


@dataclass(frozen=True)
class Capacity:
    """What a node has, as measured by itself; `level` is its instruction-set level."""

    cpu: str
    cores: int
    memory_bytes: int
    level: str
    gpus: list[Gpu]
    bandwidth_gb_per_s: float
    gmacs_per_s: float
    stage_memory_bytes: int

    @classmethod
    def _of(cls, m: pb.CapacityResponse) -> Capacity:
        return cls(
            m.cpu, m.cores, m.memory_bytes, m.level, [Gpu._of(gpu) for gpu in m.gpus], m.measured.bandwidth_gb_per_s,
            m.measured.gmacs_per_s, m.stage_memory_bytes,
        )


@dataclass(frozen=True)
class Grants:
    """To whom a node gives what: nobody, listed, realm or anyone."""

    store: str
    compute: str
    train: str

    @classmethod
    def _of(cls, m: pb.Grants) -> Grants:
        return cls(m.store, m.compute, m.train)


@dataclass(frozen=True)
class Peer:
    """Another node as this one sees it."""

    node_id: str
    peer_id: str
    addresses: list[str]
    last_seen_ms: int
    connected: bool
    rtt_ms: float
    agent: str
    capacity: Capacity | None
    grants: Grants | None

    @classmethod
    def _of(cls, m: pb.Peer) -> Peer:
        capacity = Capacity._of(m.capacity) if m.HasField("capacity") else None
        grants = Grants._of(m.grants) if m.HasField("grants") else None
        return cls(
            m.node_id, m.peer_id, list(m.addresses), m.last_seen_ms, m.connected, m.rtt_ms, m.agent, capacity, grants
        )


@dataclass(frozen=True)
class Status:
    """A node's own state; addresses are where its doors listen."""

    node_id: str
    peer_id: str
    version: str
    realm: str
    uptime_s: float
    repos: int
    bytes_stored: int
    sessions: int
    peers: int
    listen: list[str]
    data: str
    http: str
    home: str

    @classmethod
    def _of(cls, m: pb.StatusResponse) -> Status:
        return cls(
            m.node_id, m.peer_id, m.version, m.realm, m.uptime_s, m.repos, m.bytes_stored, m.sessions, m.peers,
            list(m.listen), m.data, m.http, m.home,
        )
