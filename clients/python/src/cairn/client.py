"""Every call of a node as a method. Not the node itself: each method asks a daemon, which may be on another machine (paths are
then that machine's). Every failure is a `CairnError`."""

from __future__ import annotations

import json
import os
from typing import Any, Iterable, Iterator, Mapping, Sequence

import grpc

from cairn import discovery
from cairn.errors import BadInput, CairnError, Failed, from_rpc
from cairn.embedding import Embeddings, cut, together
from cairn.generation import Generation
from cairn.progress import Bar, Report
from cairn.types import (
    Bundled, Capacity, Found, FoundRepo, Peer, Plan, Progress, Published, Pulled, Repo, RepoDetails, Resolved, Scanned, Status, Verified,
)
from cairn.v1 import bundle_pb2 as bundles
from cairn.v1 import cairn_pb2 as pb
from cairn.v1 import cairn_pb2_grpc as stubs
from cairn.statements import (
    Advisory, Attestation, Difference, Lineage, Measurement, PastRevision, Publisher, _same,
)
from cairn.v1 import catalogue_pb2 as catalogue
from cairn.v1 import history_pb2 as history_pb
from cairn.v1 import import_pb2 as imports
from cairn.v1 import tasks_pb2 as tasks_pb
from cairn.v1 import tasks_pb2_grpc as tasks_stubs

_ANSWER_BYTES_MAX = 8 << 20
_PAGE = 200


def connect(
    api: str | None = None,
    *,
    home: str | os.PathLike[str] | None = None,
    token: str | None = None,
    tls_ca: bytes | None = None,
    timeout: float | None = 30.0,
) -> Client:
    """A client of the daemon at `api`, else of the one that is found (see `cairn.discovery`). `timeout` in seconds is for calls that
    don't stream; `tls_ca` are PEM certificates to trust on `https`. Nothing is sent before the first call."""
    return Client(discovery.find(api, home, token), tls_ca, timeout)


class Client:
    """A daemon's calls. Use it in a `with` block, or `close()` it; threads may share it."""

    def __init__(self, found: discovery.Found, tls_ca: bytes | None = None, timeout: float | None = 30.0) -> None:
        self.found, self._timeout = found, timeout
        options = [("grpc.max_receive_message_length", _ANSWER_BYTES_MAX), ("grpc.enable_http_proxy", 0)]
        if found.tls:
            channel = grpc.secure_channel(found.target, grpc.ssl_channel_credentials(tls_ca), options)
        else:
            channel = grpc.insecure_channel(found.target, options)
        self._channel = channel
        self._registry, self._compute, self._node = (
            stubs.RegistryStub(channel), stubs.ComputeStub(channel), stubs.NodeStub(channel),
        )
        self._jobs = stubs.JobsStub(channel)
        self._tasks = tasks_stubs.TasksStub(channel)
        self._metadata = (("authorization", f"Bearer {found.token}"),) if found.token else ()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; calls under way end."""
        self._channel.close()

    def list(self, prefix: str = "") -> Iterator[Repo]:
        """Repos that the node knows, in order of name; further pages are asked for as they are needed."""
        page = ""
        while True:
            answer = self._ask(self._registry.List, pb.ListRequest(prefix=prefix, limit=_PAGE, page_token=page))
            yield from map(Repo._of, answer.repos)
            page = answer.next_page_token
            if not page:
                return

    def search(
        self,
        query: str = "",
        *,
        parameters: tuple[int, int] | None = None,
        bytes: tuple[int, int] | None = None,
        facets: Sequence[str] = (),
        sort: str = "",
        limit: int = 20,
        after: str = "",
        **filters: str | Sequence[str],
    ) -> Found:
        """One page of the repos that a query finds: words, "phrases", -not, field:value. `filters` are fields with a value or several
        that will do: kind, task, library, license, language, publisher, base_model, architecture, quantisation, dataset, tag.
        `parameters` and `bytes` are (least, most), 0 for no bound. `facets` are fields whose values are counted. `sort` is
        relevance, newest, name, parameters or size. `after` is the `next_cursor` of the page before."""
        (least, most), (least_bytes, most_bytes) = parameters or (0, 0), bytes or (0, 0)
        asked = [
            catalogue.SearchFilter(field=field, values=[values] if isinstance(values, str) else list(values))
            for field, values in filters.items()
        ]
        request = catalogue.SearchRequest(
            query=query, filters=asked, min_parameters=least, max_parameters=most, min_bytes=least_bytes,
            max_bytes=most_bytes, facets=_texts("facets", facets), sort=sort, limit=limit, cursor=after,
        )
        return Found._of(self._ask(self._registry.Search, request))

    def find(self, query: str = "", **options: Any) -> Iterator[FoundRepo]:
        """All repos that a search finds, page by page as they are needed; `options` as for `search`."""
        page = self.search(query, **options)
        while True:
            yield from page.repos
            if not page.next_cursor:
                return
            page = self.search(query, **{**options, "after": page.next_cursor})

    def show(self, repo: str) -> RepoDetails:
        """Everything known of `REPO[@REF]`."""
        return RepoDetails._of(self._ask(self._registry.Show, pb.ShowRequest(repo=repo)))

    def resolve(self, repo: str) -> Resolved:
        """The revision that `REPO[@REF]` stands for, asking peers when the node does not know."""
        return Resolved._of(self._ask(self._registry.Resolve, pb.ResolveRequest(repo=repo)))

    def publish(
        self,
        path: str | os.PathLike[str],
        repo: str,
        *,
        tag: str = "",
        message: str = "",
        link: bool = False,
        allow_unsafe_files: bool = False,
        progress: Report = None,
    ) -> Published:
        """Signs and publishes a file or folder of the daemon's machine. What a scan calls unsafe is refused unless admitted."""
        request = pb.PublishRequest(
            path=os.path.abspath(path), repo=repo, tag=tag, message=message, link=link, allow_unsafe_files=allow_unsafe_files,
        )
        return Published._of(self._follow(self._registry.Publish, request, progress))

    def import_model(
        self,
        source: str | os.PathLike[str],
        repo: str,
        *,
        message: str = "",
        endpoint: str = "",
        token: str = "",
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        allow_unsafe_files: bool = False,
        progress: Report = None,
    ) -> Published:
        """Brings `hf://ORG/NAME[@REV]`, a folder or a .gguf file in as a repo.

        Of hf://: `endpoint` is the Hub (by default HF_ENDPOINT, else huggingface.co) and `token` is sent to it alone (by default
        HF_TOKEN). An import that was interrupted goes on where it stopped.
        """
        source = os.fspath(source)
        if "://" in source:
            endpoint = endpoint or os.environ.get("HF_ENDPOINT", "")
            token = token or os.environ.get("HF_TOKEN", "")
        else:
            source = os.path.abspath(source)
        request = pb.ImportRequest(
            source=source, repo=repo, message=message, endpoint=endpoint, token=token, include=_texts("include", include),
            exclude=_texts("exclude", exclude), allow_unsafe_files=allow_unsafe_files,
        )
        return Published._of(self._follow(self._registry.Import, request, progress))

    def scan(self, repo: str = "", *, path: str | os.PathLike[str] | None = None) -> Scanned:
        """What the files of a repo, or of a path of the daemon's machine, would do to whoever opens them."""
        if (path is None) == (repo == ""):
            raise ValueError("either a repo or a path is scanned")
        request = imports.ScanRequest(repo=repo) if path is None else imports.ScanRequest(path=os.path.abspath(path))
        files = []
        for event in self._events(self._registry.Scan, request):
            if event.HasField("file"):
                files.append(event.file)
            elif event.HasField("done"):
                return Scanned._of(event.done, files)
        raise Failed("internal", repo or str(path), "the daemon ended the call without a result", "the daemon's log")

    def export(
        self,
        repo: str,
        to: str | os.PathLike[str],
        *,
        hub_cache: bool = False,
        include: Sequence[str] = (),
        link: bool = False,
        progress: Report = None,
    ) -> Pulled:
        """Writes a revision to the folder `to`; with `hub_cache`, `to` is a cache of huggingface_hub, which then finds it."""
        request = imports.ExportRequest(
            repo=repo, to=os.path.abspath(to), hub_cache=hub_cache, include=_texts("include", include), link=link,
        )
        return Pulled._of(self._follow(self._registry.Export, request, progress))

    def bundle_create(
        self,
        path: str | os.PathLike[str],
        repos: Sequence[str] = (),
        *,
        catalogue: bool = False,
        since: str | os.PathLike[str] | None = None,
        records_only: bool = False,
        progress: Report = None,
    ) -> Bundled:
        """Writes repos into the file `path` of the daemon's machine, for a node that no network leads to.

        Without `repos`: all of which a revision is kept there, or, with `catalogue`, every record besides. `since` is a file with what
        the other side has, as its `bundle_summary` told it: that is left out.
        """
        request = bundles.BundleCreateRequest(
            repos=_texts("repos", repos), path=os.path.abspath(path), since=os.path.abspath(since) if since is not None else "",
            records_only=records_only, catalogue=catalogue,
        )
        return Bundled._of(self._follow(self._registry.BundleCreate, request, progress))

    def bundle_apply(
        self, path: str | os.PathLike[str], *, keep_going: bool = False, progress: Report = None
    ) -> Bundled:
        """Verifies a bundle of the daemon's machine and takes it in: all of it, or, with `keep_going`, all but what is refused."""
        request = bundles.BundleApplyRequest(path=os.path.abspath(path), keep_going=keep_going)
        return Bundled._of(self._follow(self._registry.BundleApply, iter([request]), progress))

    def bundle_summary(self) -> bytes:
        """What the node holds, for `bundle_create(since=...)` on another."""
        return b"".join(event.piece for event in self._events(self._registry.BundleSummary, bundles.BundleSummaryRequest()))

    def quantise(
        self, source: str, repo: str, to: str, *, tag: str = "", message: str = "", progress: Report = None
    ) -> Published:
        """Makes the model `source` again with matrices of type `to` ("q8_0", "q4_k", ...), and publishes it as `repo`."""
        request = pb.QuantiseRequest(source=source, repo=repo, type=to, tag=tag, message=message)
        return Published._of(self._follow(self._jobs.Quantise, request, progress))

    def pull(
        self,
        repo: str,
        to: str | os.PathLike[str] | None = None,
        *,
        include: Sequence[str] = (),
        layers: range | tuple[int, int] | None = None,
        link: bool = False,
        despite: Sequence[str] = (),
        progress: Report = None,
    ) -> Pulled:
        """Fetches and verifies; with `to`, exports to that folder. `include` are globs; `layers` is half-open; `despite` are names
        of advisories that would refuse it."""
        first, end = _layers(layers)
        request = pb.PullRequest(
            repo=repo, to=os.path.abspath(to) if to is not None else "", include=_texts("include", include),
            layers_from=first, layers_to=end, link=link, despite=_texts("despite", despite),
        )
        return Pulled._of(self._follow(self._registry.Pull, request, progress))

    def history(self, repo: str, *, limit: int = 0) -> Iterator[PastRevision]:
        """What a ref (`REPO[@REF]`) stood for, newest first; `limit` is the length of a page that is asked for at once."""
        after = ""
        while True:
            request = history_pb.HistoryRequest(repo=repo, limit=limit, page_token=after)
            page = self._ask(self._registry.History, request)
            yield from (_same(PastRevision, past) for past in page.revisions)
            after = page.next_page_token
            if not after:
                return

    def diff(self, repo: str, start: str, end: str, *, bytes: bool = False) -> Difference:
        """What differs between two refs or revisions; with `bytes` the tensors' bytes are compared, as far as they are there."""
        request = history_pb.DiffRequest(repo=repo, to=end, bytes=bytes, **{"from": start})
        return Difference._of(self._ask(self._registry.Diff, request))

    def branch(self, repo: str, name: str) -> int:
        """Makes a branch stand for `REPO[@REF]`; the head's number."""
        return self._ask(self._registry.SetRef, history_pb.SetRefRequest(repo=repo, ref=name)).number

    def tag(self, repo: str, name: str) -> None:
        """Gives `REPO[@REF]` a tag, which never moves."""
        self._ask(self._registry.SetRef, history_pb.SetRefRequest(repo=repo, ref=name, tag=True))

    def lineage(self, repo: str, *, depth: int = 0) -> Lineage:
        """What a revision was made from and what was made from it."""
        return Lineage._of(self._ask(self._registry.Lineage, history_pb.LineageRequest(repo=repo, depth=depth)))

    def advise(
        self, category: str, subjects: Sequence[str], *, text: str = "", name: str = "", url: str = "", instead: str = "",
        signer: str = "",
    ) -> Advisory:
        """Signs a warning: `category` is "malware", "license", "legal", "deprecated" or "yanked"; `subjects` are `REPO`, `REPO@REF`,
        publishers, or `blob:` with a file's BLAKE3."""
        request = history_pb.AdviseRequest(
            category=category, subjects=_texts("subjects", subjects), text=text, name=name, url=url, instead=instead,
            signer=signer,
        )
        return Advisory._of(self._ask(self._registry.Advise, request).advisory)

    def withdraw_advisory(self, name: str, *, signer: str = "") -> Advisory:
        """Takes a warning back."""
        request = history_pb.AdviseRequest(name=name, signer=signer, withdraw=True)
        return Advisory._of(self._ask(self._registry.Advise, request).advisory)

    def advisories(self, repo: str = "") -> list[Advisory]:
        """What is said of `REPO[@REF]`, or by this node's keys and those whom it heeds."""
        said = self._ask(self._registry.Advisories, history_pb.AdvisoriesRequest(repo=repo)).advisories
        return [Advisory._of(advisory) for advisory in said]

    def attest(
        self, repo: str, type: str, *, verdict: str = "", tool: str = "", tool_version: str = "",
        measurements: Iterable[Measurement] = (), text: str = "", signer: str = "",
    ) -> Attestation:
        """Signs what was found out about a revision."""
        found = [history_pb.Measurement(name=m.name, value=m.value, unit=m.unit, on=m.on) for m in measurements]
        request = history_pb.AttestRequest(
            repo=repo, type=type, verdict=verdict, tool=tool, tool_version=tool_version, measurements=found, text=text,
            signer=signer,
        )
        return Attestation._of(self._ask(self._registry.Attest, request).attestation)

    def publisher(self, publisher: str) -> Publisher:
        """Who a handle or key is, and which keys sign for it."""
        return Publisher._of(self._ask(self._registry.Publisher, history_pb.PublisherRequest(publisher=publisher)))

    def verify(self, repo: str, *, progress: Report = None) -> Verified:
        """Reads every byte and signature again."""
        return Verified._of(self._follow(self._registry.Verify, pb.VerifyRequest(repo=repo), progress))

    def read(self, repo: str, path: str, *, offset: int = 0, length: int = 0) -> Iterator[bytes]:
        """The verified bytes of one file, piece by piece; length 0 is all that follows."""
        request = pb.ReadBlobRequest(file=pb.FileOf(repo=repo, path=path), offset=offset, length=length)
        for piece in self._events(self._registry.ReadBlob, request):
            yield piece.data

    def mirror(
        self, pattern: str, *, kinds: Iterable[str] = (), licenses: Iterable[str] = (), tasks: Iterable[str] = (),
        tags: Iterable[str] = (), bytes_max: int = 0, copies: int = 0, priority: int = 0, quota_bytes: int = 0, hours: str = "",
    ) -> None:
        """Keeps what the pattern names: a repo, `PUBLISHER/*`, `PUBLISHER/GLOB`, `*/GLOB` or `*`.

        The rules replace those that the pattern had. `copies`: how many all nodes together are to keep; 0 is one here, whatever
        others do. `hours`: when fetches may begin, UTC, like "22:00-06:00".
        """
        rules = pb.MirrorRules(
            kinds=kinds, licenses=licenses, tasks=tasks, tags=tags, bytes_max=bytes_max, copies=copies, priority=priority,
            quota_bytes=quota_bytes, hours=hours,
        )
        self._ask(self._registry.MirrorAdd, pb.MirrorAddRequest(pattern=pattern, rules=rules))

    def unmirror(self, pattern: str) -> bool:
        """Whether the pattern was there."""
        return self._ask(self._registry.MirrorRemove, pb.MirrorRemoveRequest(pattern=pattern)).removed

    def plan(
        self, repo: str, *, stages: int = 0, context: int = 0, privacy: str = "", adapter: str = "",
        quantise: str = "", kv: str = "",
    ) -> Plan:
        """Where the layers would go, and why."""
        request = pb.PlanRequest(repo=repo, stages=stages, context=context, privacy=privacy, adapter=adapter, quantise=quantise, kv=kv)
        return Plan._of(self._ask(self._compute.Plan, request))

    def generate(
        self,
        repo: str,
        prompt: str | None = None,
        *,
        messages: Iterable[Mapping[str, str]] | None = None,
        token_ids: Sequence[int] | None = None,
        max_tokens: int = 256,
        temperature: float | None = None,
        top_k: int = 0,
        top_p: float = 0.0,
        seed: int | None = None,
        stop: Sequence[str] = (),
        stages: int = 0,
        raw: bool = False,
        privacy: str = "",
        adapter: str = "",
        quantise: str = "",
        kv: str = "",
        repetition_penalty: float = 0.0,
        min_p: float = 0.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        logprobs: int | None = None,
        n: int = 1,
        any_json: bool = False,
        json_schema: str | Mapping[str, Any] | None = None,
        regex: str | None = None,
        grammar: str | None = None,
        generated: int = 0,
        sample_index: int = 0,
        timeout: float | None = None,
        progress: Report = None,
    ) -> Generation:
        """Tokens as they are made, from a prompt, from chat `messages` ({"role", "content"}) or from `token_ids`. Temperature 0 is greedy;
        an unset seed is drawn and reported; `stages` asks for exactly so many different nodes; `adapter` is added to the model
        (`adapters/PUBLISHER/NAME[@REF]`); with `quantise` ("q8_0", …) stages hold matrices of more bits as that type,
        and with `kv` "int8" keys and values in half the memory.

        The text follows one of `any_json`, `json_schema` (a dictionary or its text), `regex` and `grammar` (Lark), from its first character
        to its last; only one that ends with `finish` "length" was cut short. `logprobs` tells of each token how likely it was, and of
        that many likeliest. `n` answers come mixed, each token with its `choice`.

        When the node itself dies, another one goes on: ask it for the same revisions (also the adapter's), seed and options, with `started.prompt_ids` and
        the ids received so far as `token_ids`, how many those are as `generated`, and `max_tokens` less by them; of several answers
        each by itself, its choice as `sample_index`. What follows is what would have followed."""
        if sum(way is not None for way in (prompt, messages, token_ids)) != 1:
            raise BadInput("bad_input", repo, "one of prompt, messages and token_ids is needed")
        request = pb.GenerateRequest(
            repo=repo, prompt=prompt or "", messages=[_message(one) for one in messages or ()], max_tokens=max_tokens,
            temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, stop=_texts("stop", stop), stages=stages,
            raw=raw, privacy=privacy, adapter=adapter, quantise=quantise, kv=kv, repetition_penalty=repetition_penalty, token_ids=token_ids or (), min_p=min_p,
            frequency_penalty=frequency_penalty, presence_penalty=presence_penalty, logprobs=logprobs, n=n,
            logit_bias=[pb.LogitBias(id=id, bias=bias) for id, bias in (logit_bias or {}).items()],
            generated=generated, sample_index=sample_index, **_format(any_json, json_schema, regex, grammar),
        )
        call = self._compute.Generate(request, metadata=self._metadata, timeout=timeout)
        return Generation(call, self._explain, Bar(progress))

    def embed(
        self, repo: str, texts: Sequence[str], *, prompt: str = "", privacy: str = "", progress: Report = None
    ) -> Embeddings:
        """Vectors of texts, in their order, by the node that suits best; long lists are several requests. `prompt` names one of the
        model's own, which then stands before each text."""
        answers = []
        for part in cut(texts):
            vectors = []
            request = tasks_pb.EmbedRequest(repo=repo, texts=part, prompt=prompt, privacy=privacy)
            done = self._follow(self._tasks.Embed, request, progress, lambda event: vectors.extend(_rows(event)))
            answers.append((vectors, done))
        if not answers:
            raise BadInput("bad_input", repo, "there are no texts", "one or more texts")
        return together(answers)

    def status(self) -> Status:
        """The node's own state."""
        return Status._of(self._ask(self._node.Status, pb.StatusRequest()))

    def peers(self) -> Sequence[Peer]:
        """Other nodes as this one sees them."""
        return [Peer._of(peer) for peer in self._ask(self._node.Peers, pb.PeersRequest()).peers]

    def capacity(self) -> Capacity:
        """What the node's machine has, as measured."""
        return Capacity._of(self._ask(self._node.Capacity, pb.CapacityRequest()))

    def _ask(self, method, request):
        try:
            return method(request, metadata=self._metadata, timeout=self._timeout)
        except grpc.RpcError as error:
            raise self._explain(error) from None

    def _events(self, method, request):
        call = method(request, metadata=self._metadata)
        try:
            yield from call
        except grpc.RpcError as error:
            raise self._explain(error) from None
        finally:
            call.cancel()

    def _follow(self, method, request, report: Report, other=lambda event: None):
        """Shows progress until the last message, `done`; `other` takes what is neither."""
        with Bar(report) as bar:
            for event in self._events(method, request):
                kind = event.WhichOneof("event")
                if kind == "progress":
                    bar.update(Progress._of(event.progress))
                elif kind == "done":
                    return event.done
                else:
                    other(event)
        raise Failed("internal", self.found.target, "the call ended without a result")

    def _explain(self, error: grpc.RpcError) -> CairnError:
        return from_rpc(error, self.found.target)


def _rows(event: tasks_pb.EmbedEvent) -> list[list[float]]:
    """The vectors that an event brings, if it brings any."""
    values, width = list(event.vectors.values), event.vectors.width
    return [values[at:at + width] for at in range(0, len(values), width)] if width else []


def _layers(layers: range | tuple[int, int] | None) -> tuple[int, int]:
    if layers is None:
        return 0, 0
    first, end, step = (layers.start, layers.stop, layers.step) if isinstance(layers, range) else (*layers, 1)
    if step != 1 or not 0 <= first < end:
        raise BadInput("bad_input", "layers", f"{layers} is no half-open range of layers", "layers=(0, 10)")
    return first, end


def _format(
    any_json: bool, schema: str | Mapping[str, Any] | None, regex: str | None, grammar: str | None
) -> dict[str, Any]:
    schema = json.dumps(schema) if isinstance(schema, Mapping) else schema
    asked = {"json": any_json or None, "json_schema": schema, "regex": regex, "grammar": grammar}
    asked = {name: value for name, value in asked.items() if value is not None}
    if len(asked) > 1:
        raise BadInput("bad_input", "format", f"{' and '.join(asked)} were given, a text follows one", "one of them")
    return asked


def _texts(name: str, texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise BadInput("bad_input", name, "a list of texts is needed, not one text", f"{name}=[{texts!r}]")
    return [str(text) for text in texts]


def _message(message: Mapping[str, str]) -> pb.ChatMessage:
    try:
        return pb.ChatMessage(role=message["role"], content=message["content"])
    except (KeyError, TypeError):
        raise BadInput("bad_input", "messages", "each needs a role and a content") from None
