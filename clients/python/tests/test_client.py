"""The client against a real daemon: every call once, and the refusals that people meet first."""

from __future__ import annotations

import filecmp
import json
import os
import struct
import time
from pathlib import Path

import pytest

import cairn
from conftest import CHECKOUT


def test_a_folder_under_another_name_has_the_same_files_and_another_revision(node, model):
    assert model.repo == "acme/tiny" and model.number >= 1 and len(model.revision) == 64
    again = node.publish(CHECKOUT / "models/tiny", "acme/other", progress=False)
    assert (again.files, again.bytes) == (model.files, model.bytes) and again.revision != model.revision


def test_a_published_repo_is_listed_shown_and_resolved(node, model):
    listed = {repo.repo: repo for repo in node.list()}
    assert listed["acme/tiny"].revision == model.revision and listed["acme/tiny"].held
    shown = node.show("acme/tiny")
    assert {file.path for file in shown.files} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert all(set(file.digests) == {"blake3", "sha256", "git-sha1"} for file in shown.files)
    assert shown.model is not None and shown.model.served and shown.model.layers > 0
    assert "v1" in {ref.name for ref in shown.refs if ref.tag}
    for name in ("acme/tiny", "acme/tiny@v1", f"acme/tiny@{model.revision[:12]}", f"{model.publisher}/tiny"):
        assert node.resolve(name).revision == model.revision


def test_a_list_is_narrowed_by_its_prefix(node, model):
    assert [repo.repo for repo in node.list("acme/ti")] == ["acme/tiny"]
    assert list(node.list("nobody/")) == []


def test_a_published_card_is_shown_and_found(node, tmp_path):
    card = "---\nlicense: mit\nlanguage: [fr]\npipeline_tag: fill-mask\ntags: 7\nbase_model_relation: child\n---\nAlexandrines.\n"
    (tmp_path / "README.md").write_text(card)
    published = node.publish(tmp_path, "acme/sonnet-7b", progress=False)
    assert [(problem.line, problem.field) for problem in published.card_problems] == [(6, "base_model_relation")]
    assert node.show("acme/sonnet-7b").card.languages == ["fr"]
    deadline = time.monotonic() + 30
    while (found := node.search("alexandrines", facets=["license"])).pending and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [repo.repo for repo in found.repos] == ["acme/sonnet-7b"] and found.total == 1
    assert found.facets == {"license": {"mit": 1}} and found.repos[0].task == "fill-mask"
    assert [repo.repo for repo in node.find(language=["fr", "de"], limit=1)] == ["acme/sonnet-7b"]
    assert node.search("sonnet", license="apache-2.0").total == 0
    with pytest.raises(cairn.BadInput, match="at character 1"):
        node.search("licens:mit")


def test_history_warnings_and_findings_are_told(node, tmp_path):
    (tmp_path / "w.bin").write_bytes(b"one" * 1000)
    node.publish(tmp_path, "acme/storied", message="first", tag="v1", progress=False)
    (tmp_path / "w.bin").write_bytes(b"two" * 1000)
    second = node.publish(tmp_path, "acme/storied", message="second", progress=False)
    assert [(past.number, past.message, past.state) for past in node.history("acme/storied", limit=1)] == [
        (2, "second", "current"), (1, "first", "past"),
    ]
    changed = node.diff("acme/storied", "v1", "main")
    assert [(file.path, file.change) for file in changed.files] == [("w.bin", "changed")] and changed.bytes_new == 3000
    node.tag("acme/storied", "v2")
    assert node.resolve("acme/storied@v2").revision == second.revision
    assert node.branch("acme/storied@v1", "main") == 3
    warned = node.advise("yanked", ["acme/storied@v2"], text="wrong", name="y1")
    assert (warned.weight, warned.action) == ("own", "refuse")
    with pytest.raises(cairn.Refused, match="wrong"):
        node.pull("acme/storied@v2", progress=False)
    assert node.pull("acme/storied@v2", despite=["y1"], progress=False).bytes_total == 3000
    node.attest("acme/storied@v2", "evaluation", verdict="passed", measurements=[cairn.Measurement("perplexity", 12.5)])
    shown = node.show("acme/storied@v2")
    assert shown.advisories[0].name == "y1" and shown.attestations[0].measurements[0].value == 12.5
    assert node.withdraw_advisory("y1").withdrawn and node.advisories("acme/storied@v2") == []
    assert node.publisher("acme").own and node.lineage("acme/storied").descendants == []


def test_a_quantised_model_names_what_it_was_made_of(node, model):
    phases = set()
    made = node.quantise("acme/tiny", "acme/tiny-q8", "q8_0", progress=lambda step: phases.add(step.phase))
    shown = node.show("acme/tiny-q8")
    assert shown.parents == [model.revision] and model.revision in shown.metadata["base_model"]
    assert made.bytes < model.bytes and shown.repo.quantisation == "Q8_0" and "quantise" in phases
    with pytest.raises(cairn.BadInput, match="q4_k"):
        node.quantise("acme/tiny", "acme/x", "q3_k")


def test_a_pulled_folder_equals_the_published_one(node, model, tmp_path):
    seen = []
    pulled = node.pull("acme/tiny", tmp_path / "copy", include=["*.json", "*.safetensors"], progress=seen.append)
    assert pulled.revision == model.revision and pulled.bytes_needed == pulled.bytes_local + pulled.bytes_fetched
    names = ["config.json", "tokenizer.json", "model.safetensors"]
    _, different, missing = filecmp.cmpfiles(CHECKOUT / "models/tiny", tmp_path / "copy", names, shallow=False)
    assert (different, missing) == ([], [])
    assert not (tmp_path / "copy/README.md").exists()
    assert all(isinstance(one, cairn.Progress) for one in seen)


def test_a_bundle_is_written_and_applied_again_for_nothing(node, model, tmp_path):
    seen = []
    made = node.bundle_create(tmp_path / "one.cairn", ["acme/tiny"], progress=seen.append)
    assert made.file_bytes == (tmp_path / "one.cairn").stat().st_size and made.revisions == 1 and made.blobs > 1
    assert all(one.phase == "bundle" and one.bytes_done <= one.bytes_total for one in seen)
    applied = node.bundle_apply(tmp_path / "one.cairn")
    assert (applied.records, applied.new_records, applied.new_blobs) == (made.records, 0, 0)
    (tmp_path / "summary").write_bytes(node.bundle_summary())
    rest = node.bundle_create(tmp_path / "rest.cairn", catalogue=True, since=tmp_path / "summary")
    assert (rest.records, rest.blobs) == (0, 0)
    (tmp_path / "one.cairn").write_bytes(b"no bundle")
    with pytest.raises(cairn.BadInput):
        node.bundle_apply(tmp_path / "one.cairn")


def test_a_file_is_read_in_pieces_and_from_an_offset(node, model):
    whole = (CHECKOUT / "models/tiny/model.safetensors").read_bytes()
    assert b"".join(node.read("acme/tiny", "model.safetensors")) == whole
    assert b"".join(node.read("acme/tiny", "model.safetensors", offset=1000, length=70_000)) == whole[1000:71_000]


def test_verifying_finds_nothing_wrong(node, model):
    verified = node.verify("acme/tiny", progress=False)
    assert verified.ok and verified.bad == {} and verified.bytes == model.bytes


def test_a_plan_covers_every_layer(node, model):
    plan = node.plan("acme/tiny")
    assert plan.stages[0].first_layer == 0 and plan.stages[-1].end_layer == node.show("acme/tiny").model.layers
    assert plan.stages[0].embedding and plan.stages[-1].head


def test_a_generation_streams_what_its_result_holds(node, model):
    words = node.generate("acme/tiny", "Once upon a time", max_tokens=12, temperature=0, raw=True)
    tokens = list(words)
    result = words.result
    assert [token.id for token in tokens] == result.tokens and 1 <= len(tokens) <= 12
    assert "".join(token.text for token in tokens) == result.text == words.text
    assert result.finish in ("stop", "length") and result.recoveries == 0 and len(result.stages) == 1
    assert words.started.revision == model.revision and words.started.prompt_tokens == result.prompt_tokens


def test_a_generation_that_broke_off_goes_on_where_it_was(node, model):
    options = {"temperature": 1.0, "seed": 7}
    words = node.generate("acme/tiny", "Once upon", max_tokens=20, raw=True, **options)
    tokens = [token.id for token in words]
    ids = words.started.prompt_ids + tokens[:8]
    rest = node.generate(f"acme/tiny@{words.started.revision}", token_ids=ids, max_tokens=12, **options)
    assert tokens[:8] + [token.id for token in rest] == tokens


def test_an_adapter_changes_the_text_and_a_broken_generation_goes_on_with_it(node, model, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 8}))
    config = json.loads((CHECKOUT / "models/tiny/config.json").read_text())
    width, tensors, data = config["hidden_size"], {}, b""
    for layer in range(config["num_hidden_layers"]):
        for half, shape in (("A", [1, width]), ("B", [width, 1])):
            piece = struct.pack(f"<{width}f", *((i % 7 - 3) / 10 for i in range(width)))
            name = f"base_model.model.model.layers.{layer}.self_attn.o_proj.lora_{half}.weight"
            tensors[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(piece)]}
            data += piece
    header = json.dumps(tensors).encode()
    (tmp_path / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
    published = node.publish(tmp_path, "adapters/acme/tilt", progress=False)
    shown = node.show("adapters/acme/tilt").adapter
    assert (shown.rank, shown.alpha, shown.modules, shown.served) == (1, 8.0, ["o_proj"], True)
    assert node.show("acme/tiny").adapter is None

    options = {"raw": True, "temperature": 0, "max_tokens": 12}
    plain = [token.id for token in node.generate("acme/tiny", "Once upon", **options)]
    words = node.generate("acme/tiny", "Once upon", adapter="adapters/acme/tilt", **options)
    tokens = [token.id for token in words]
    assert tokens != plain and words.started.adapter == published.revision
    ids, options["max_tokens"] = words.started.prompt_ids + tokens[:5], 7
    again = f"adapters/acme/tilt@{words.started.adapter}"
    assert tokens[:5] + [token.id for token in node.generate("acme/tiny", token_ids=ids, adapter=again, **options)] == tokens
    assert node.plan("acme/tiny", adapter=again).stages[0].bytes > node.plan("acme/tiny").stages[0].bytes


def test_one_seed_makes_one_text(node, model):
    def text():
        return node.generate("acme/tiny", "The", max_tokens=8, temperature=1.0, seed=7, raw=True).text

    assert text() == text()


def test_a_text_follows_what_it_was_asked_to(node, model):
    schema = {"type": "object", "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["age"],
              "additionalProperties": False}
    for seed in range(3):
        made = node.generate("acme/tiny", "Say", json_schema=schema, seed=seed, temperature=1.0).result
        assert made.finish == "stop" and 0 <= json.loads(made.text)["age"] <= 99
    assert node.generate("acme/tiny", "Is it?", regex="(yes|no)", seed=1).text in ("yes", "no")
    assert node.generate("acme/tiny", "Is it?", grammar='start: "a" "b"', seed=1).text == "ab"
    with pytest.raises(cairn.BadInput, match="grammar"):
        node.generate("acme/tiny", "Is it?", regex="(", seed=1).text
    with pytest.raises(cairn.BadInput, match="regex and grammar"):
        node.generate("acme/tiny", "Is it?", regex="a", grammar="b")


def test_a_grammar_is_gone_on_with(node, model):
    options = {"temperature": 1.0, "seed": 3, "regex": "[a-z]{6,12}", "frequency_penalty": 0.5}
    words = node.generate("acme/tiny", "Once upon", max_tokens=30, raw=True, **options)
    tokens = [token.id for token in words]
    ids = words.started.prompt_ids + tokens[:2]
    rest = node.generate(f"acme/tiny@{words.started.revision}", token_ids=ids, generated=2, max_tokens=28, **options)
    assert tokens[:2] + [token.id for token in rest] == tokens


def test_tokens_tell_how_likely_they_were(node, model):
    tokens = list(node.generate("acme/tiny", "Once", max_tokens=6, temperature=0, raw=True, logprobs=3))
    for token in tokens:
        assert len(token.best) == 3 and token.best[0].id == token.id and token.best[0].logprob == token.logprob <= 0
    assert all(token.logprob is None for token in node.generate("acme/tiny", "Once", max_tokens=2, raw=True))


def test_several_answers_come_with_their_numbers(node, model):
    words = node.generate("acme/tiny", "Once", max_tokens=8, temperature=1.0, seed=2, raw=True, n=3)
    tokens = list(words)
    assert {token.choice for token in tokens} == {0, 1, 2} and len(words.results) == 3
    for choice, result in enumerate(words.results):
        assert [token.id for token in tokens if token.choice == choice] == result.tokens
        alone = node.generate("acme/tiny", "Once", max_tokens=8, temperature=1.0, seed=2, raw=True, sample_index=choice)
        assert alone.result.tokens == result.tokens
    assert words.result == words.results[0]


def test_a_bias_forbids_a_token(node, model):
    first = node.generate("acme/tiny", "Once", max_tokens=1, temperature=0, raw=True).result.tokens[0]
    other = node.generate("acme/tiny", "Once", max_tokens=1, temperature=0, raw=True, logit_bias={first: -100}).result.tokens
    assert other != [first]


def test_asking_for_the_start_first_loses_no_token(node, model):
    words = node.generate("acme/tiny", "Once", max_tokens=5, temperature=0, raw=True)
    assert words.started.session
    assert [token.id for token in words] == words.result.tokens


def test_messages_are_a_chat(node, model):
    result = node.generate("acme/tiny", messages=[{"role": "user", "content": "Hello"}], max_tokens=4).result
    assert 1 <= len(result.tokens) <= 4


def test_a_cancelled_generation_ends_and_the_node_goes_on(node, model):
    with node.generate("acme/tiny", "Once", max_tokens=400, temperature=0, raw=True) as words:
        next(words)
        words.cancel()
        with pytest.raises(cairn.CairnError) as error:
            list(words)
    assert error.value.reason == "cancelled"
    assert node.generate("acme/tiny", "Once", max_tokens=2, raw=True).result.tokens


def test_the_node_tells_of_itself(node, daemon, model):
    status = node.status()
    assert status.node_id == daemon.ready["node_id"] and status.repos >= 1 and status.bytes_stored > 0
    capacity = node.capacity()
    assert capacity.cores >= 1 and capacity.memory_bytes > 0 and capacity.level


def test_a_mirror_is_kept_and_let_go(node):
    node.mirror("acme/*")
    assert node.unmirror("acme/*") and not node.unmirror("acme/*")


def test_a_mirror_takes_rules_and_refuses_those_without_sense(node):
    node.mirror("acme/*-chat", kinds=["model"], licenses=["mit"], tasks=["text-generation"], copies=2, quota_bytes=1 << 30, hours="22:00-06:00")
    assert node.unmirror("acme/*-chat")
    with pytest.raises(cairn.BadInput, match="22:00-06:00"):
        node.mirror("acme/*", hours="at night")


def test_a_repo_that_nobody_has_is_not_found(node):
    with pytest.raises(cairn.NotFound) as error:
        node.show("acme/nothing-here")
    assert error.value.reason == "not_found" and "acme/nothing-here" in str(error.value)


def test_a_malformed_name_is_bad_input(node):
    with pytest.raises(cairn.BadInput):
        node.resolve("not a repo")


def test_publishing_without_the_token_is_refused(daemon, tmp_path):
    with cairn.connect(daemon.api, home=tmp_path) as stranger:
        assert stranger.status().node_id
        with pytest.raises(cairn.Refused) as error:
            stranger.publish(CHECKOUT / "models/tiny", "acme/tiny")
    assert error.value.reason == "token_required"


def test_more_stages_than_nodes_are_refused_with_a_reason(node, model):
    with pytest.raises(cairn.CairnError) as error:
        node.plan("acme/tiny", stages=3)
    assert error.value.why


def test_a_port_without_a_daemon_is_unavailable(tmp_path):
    with cairn.connect("127.0.0.1:1", home=tmp_path) as client, pytest.raises(cairn.Unavailable) as error:
        client.status()
    assert "127.0.0.1:1" in str(error.value) and error.value.try_ == "cairn node"


def test_a_daemon_is_found_by_its_home(daemon, monkeypatch):
    monkeypatch.delenv("CAIRN_API", raising=False)
    monkeypatch.setenv("CAIRN_HOME", os.fspath(daemon.home))
    with cairn.connect() as client:
        assert client.found.source == "ready.json" and client.status().node_id == daemon.ready["node_id"]


def test_a_second_node_pulls_from_the_first_and_computes_with_it(daemon, second, model):
    with cairn.connect(second.api, home=second.home) as node:
        (peer,) = await_peers(node, 1)
        assert peer.node_id == daemon.ready["node_id"] and peer.connected
        pulled = node.pull(f"{model.publisher}/tiny", progress=False)
        assert pulled.revision == model.revision
        assert set(pulled.bytes_from) == {peer.node_id}
        assert sum(pulled.bytes_from.values()) == pulled.bytes_fetched == model.bytes
        words = node.generate(f"{model.publisher}/tiny", "Once", max_tokens=6, temperature=0, raw=True, stages=2)
        assert {stage.node for stage in words.result.stages} == {daemon.ready["node_id"], second.ready["node_id"]}
    with cairn.connect(daemon.api, home=daemon.home) as first:
        alone = first.generate("acme/tiny", "Once", max_tokens=6, temperature=0, raw=True, stages=1).result
    assert alone.tokens == words.result.tokens


def await_peers(node, count):
    """Waits for so many connected peers whose advert was heard."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        peers = [peer for peer in node.peers() if peer.connected and peer.capacity]
        if len(peers) == count:
            return peers
        time.sleep(0.05)
    raise AssertionError(f"not {count} peers after 30 s: {node.peers()}")


def test_texts_become_the_references_vectors_and_a_language_model_is_refused(node, model):
    with pytest.raises(cairn.Refused, match="text-generation"):
        node.embed("acme/tiny", ["a text"])
    cache = Path(os.environ.get("CAIRN_TEST_MODELS") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "cairn-test-models"))
    if not (cache / "minilm/model.safetensors").is_file():
        assert "CAIRN_REQUIRE_MODELS" not in os.environ, "run scripts/fetch-model minilm"
        pytest.skip("scripts/fetch-model minilm brings the model")
    node.publish(cache / "minilm", "acme/minilm", progress=False)
    fixture = CHECKOUT / "node/tests/minilm"
    texts = (fixture / "sentences.txt").read_text(encoding="utf-8").splitlines()
    wanted = struct.iter_unpack("<384f", (fixture / "vectors.f32").read_bytes())
    made = node.embed("acme/minilm", texts * 60)
    assert (len(made.vectors), made.width, made.truncated, len(made.nodes)) == (60 * len(texts), 384, 60, 1)
    assert made.vectors[:len(texts)] == made.vectors[-len(texts):], "a text's vector depends on where it stands"
    for got, reference in zip(made.vectors, wanted):
        assert max(abs(a - b) for a, b in zip(got, reference)) < 1e-5
    with pytest.raises(cairn.BadInput, match="query"):
        node.embed("acme/minilm", texts, prompt="query")
    with pytest.raises(cairn.BadInput, match="no texts"):
        node.embed("acme/minilm", [])
