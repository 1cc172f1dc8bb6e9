"""What needs no daemon: where one is looked for, what is refused before anything is sent, and the tables shared with others."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys

import pytest
from google.protobuf import descriptor_pb2

import cairn
from cairn import discovery, embedding, errors
from cairn.progress import Bar
from cairn.v1 import cairn_pb2 as pb
from conftest import CHECKOUT


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name in ("CAIRN_API", "CAIRN_TOKEN", "CAIRN_HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "api.token").write_text("secret\n")
    return tmp_path


def test_each_place_beats_the_next(home, monkeypatch):
    assert discovery.find(home=home).target == "127.0.0.1:4180"
    (home / "ready.json").write_text(json.dumps({"api": "127.0.0.1:2"}))
    assert discovery.find(home=home).target == "127.0.0.1:2"
    (home / "config.toml").write_text('api = "127.0.0.1:3"')
    assert discovery.find(home=home).target == "127.0.0.1:3"
    monkeypatch.setenv("CAIRN_API", "127.0.0.1:4")
    assert discovery.find(home=home).target == "127.0.0.1:4"
    assert discovery.find("http://127.0.0.1:5", home=home).target == "127.0.0.1:5"


def test_the_token_goes_to_loopback_or_over_tls_only(home):
    assert discovery.find("127.0.0.1:1", home).token == "secret"
    assert discovery.find("[::1]:1", home).token == "secret"
    assert discovery.find("https://example.org:1", home).token == "secret"
    assert discovery.find("http://example.org:1", home).token is None
    assert discovery.find("10.0.0.1:1", home).token is None
    assert "secret" not in repr(discovery.find("127.0.0.1:1", home))


def test_a_damaged_note_of_a_daemon_is_passed_over(home):
    (home / "ready.json").write_text("[not json")
    assert discovery.find(home=home).source == "default"


@pytest.mark.parametrize("text", [b"= =", b"api = 7", b"api = '\xff'"])
def test_a_damaged_configuration_is_refused_and_names_the_file(home, text):
    (home / "config.toml").write_bytes(text)
    with pytest.raises(cairn.BadInput, match=re.escape(str(home / "config.toml"))):
        discovery.find(home=home)


def test_the_generated_messages_are_those_of_the_released_description():
    released = descriptor_pb2.FileDescriptorSet.FromString((CHECKOUT / "protocol/src/gen/cairn.v1.bin").read_bytes())
    (wanted,) = (file for file in released.file if file.name == pb.DESCRIPTOR.name)
    generated = descriptor_pb2.FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(generated)
    for name in ("message_type", "service", "enum_type", "dependency"):
        found = [_plain(one) for one in getattr(generated, name)]
        assert found == [_plain(one) for one in getattr(wanted, name)], "run clients/python/generate"


def _plain(described):
    """Without the names in JSON, which compilers fill in or not."""
    text = str(described)
    return re.sub(r'^\s*json_name: .*\n', "", text, flags=re.M)


@pytest.mark.parametrize("address", ["nowhere", "ftp://x:1", "127.0.0.1:99999", "http://:1"])
def test_an_address_that_is_none_is_bad_input(home, address):
    with pytest.raises(cairn.BadInput):
        discovery.find(address, home)


def test_requests_that_make_no_sense_are_refused_before_they_are_sent(home):
    with cairn.connect("127.0.0.1:1", home=home) as client:
        for call in (
            lambda: client.generate("acme/tiny"),
            lambda: client.generate("acme/tiny", "x", messages=[]),
            lambda: client.generate("acme/tiny", messages=[{"role": "user"}]),
            lambda: client.generate("acme/tiny", "x", stop="."),
            lambda: client.pull("acme/tiny", include="*.json"),
            lambda: client.pull("acme/tiny", layers=(3, 3)),
            lambda: client.pull("acme/tiny", layers=range(0, 4, 2)),
        ):
            with pytest.raises(cairn.BadInput):
                call()


def test_every_reason_has_the_class_of_its_exit_code():
    source = (CHECKOUT / "protocol/src/refusal.rs").read_text()
    rows = re.findall(r'^    \w+: "(\w+)", \d+, \d+, (\d);', source, re.MULTILINE)
    assert len(rows) > 20
    classes = {"1": errors.Failed, "2": errors.BadInput, "3": errors.NotFound, "4": errors.Refused, "5": errors.Unavailable}
    assert {reason: classes[exit_code] for reason, exit_code in rows} == errors.REASONS


def test_the_stubs_have_every_message_and_method_of_the_proto():
    from cairn.v1 import cairn_pb2 as pb

    source = (CHECKOUT / "protocol/proto/cairn/v1/cairn.proto").read_text()
    messages = set(re.findall(r"^message (\w+)", source, re.MULTILINE))
    methods = set(re.findall(r"^  rpc (\w+)\(", source, re.MULTILINE))
    assert messages == set(pb.DESCRIPTOR.message_types_by_name)
    stubs = {method.name for service in pb.DESCRIPTOR.services_by_name.values() for method in service.methods}
    assert methods == stubs
    for message in messages:
        rest = source.split(f"message {message} {{", 1)[1]
        body = "" if rest.startswith("}") else rest.split("\n}", 1)[0]
        numbers = {int(number) for number in re.findall(r"= (\d+);", body)}
        assert numbers == {field.number for field in pb.DESCRIPTOR.message_types_by_name[message].fields}, message


def test_a_refusal_reads_as_a_sentence():
    error = errors.NotFound("not_found", "acme/x", "nobody has it", "cairn ls")
    assert str(error) == "acme/x: nobody has it (try: cairn ls)" and isinstance(error, cairn.CairnError)


def test_nothing_is_drawn_in_a_pipe_and_one_line_on_a_terminal(monkeypatch):
    step = cairn.Progress("fetch", 512, 1024, "model.gguf")
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stderr", pipe)
    with Bar(None) as bar:
        bar.update(step)
    assert pipe.getvalue() == ""
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with Bar(True) as bar:
        bar.update(step)
    assert "50%" in terminal.getvalue() and terminal.getvalue().endswith("\n")


def test_importing_the_package_asks_nothing_of_anyone():
    code = "import cairn; print(cairn.__version__)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "0.1.0\n"


def test_texts_are_cut_into_requests_that_a_node_takes():
    limits = (CHECKOUT / "protocol/src/limits.rs").read_text()
    assert "TASK_TEXTS_MAX: usize = 1024;" in limits and "TASK_BYTES_MAX: usize = 512 * 1024;" in limits
    assert [len(part) for part in embedding.cut(["x"] * 2049)] == [1024, 1024, 1]
    assert [len(part) for part in embedding.cut(["é" * (128 << 10)] * 5)] == [2, 2, 1]
    assert list(embedding.cut([])) == []
    with pytest.raises(cairn.BadInput, match="one text"):
        list(embedding.cut("a text"))
