"""One real daemon for all tests. The program is named by CAIRN_BIN; without it every test fails, none is skipped."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import threading
from pathlib import Path

import pytest

import cairn

START_S = 60.0
CHECKOUT = Path(__file__).resolve().parents[3]


class Daemon:
    """A `cairn node` on loopback with a home of its own."""

    def __init__(self, home: Path, bootstrap: list[str] = ()) -> None:
        program = os.environ.get("CAIRN_BIN")
        if not program or not Path(program).is_file():
            pytest.fail(f"CAIRN_BIN={program!r} is no program: build it and say CAIRN_BIN=target/debug/cairn", pytrace=False)
        self.home = home
        flags = [
            "--listen", "/ip4/127.0.0.1/tcp/0", "--data-listen", "127.0.0.1:0", "--api-listen", "127.0.0.1:0",
            "--http-listen", "none", "--no-mdns", "--until-stdin-closes",
        ]
        flags += [flag for address in bootstrap for flag in ("--bootstrap", address)]
        # The daemon ends with this process, even when a test is killed.
        with (home.parent / "daemon.log").open("wb") as log:
            self._process = subprocess.Popen(
                [program, "--json", "--home", str(home), "node", *flags], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=log, text=True,
            )
        self.ready = self._await_ready()
        self.api = self.ready["api"]

    def _await_ready(self) -> dict:
        lines: queue.Queue[str] = queue.Queue(maxsize=64)
        threading.Thread(target=lambda: [lines.put(line) for line in self._process.stdout], daemon=True).start()
        try:
            while True:
                line = json.loads(lines.get(timeout=START_S))
                if line.get("event") == "ready":
                    return line
        except queue.Empty:
            log = (self.home.parent / "daemon.log").read_text(errors="replace")
            pytest.fail(f"the daemon is not ready after {START_S} s:\n{log[-2000:]}", pytrace=False)

    def stop(self) -> None:
        """Lets go of the daemon's input and waits for it."""
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
            self._process.stdout.close()
        except subprocess.TimeoutExpired:
            self._process.kill()
            pytest.fail("the daemon did not stop within 30 s", pytrace=False)


@pytest.fixture(scope="session")
def daemon(tmp_path_factory):
    daemon = Daemon(tmp_path_factory.mktemp("daemon") / "home")
    yield daemon
    daemon.stop()


@pytest.fixture
def second(daemon, tmp_path):
    """Another daemon that knows the first."""
    second = Daemon(tmp_path / "home", daemon.ready["listen"])
    yield second
    second.stop()


@pytest.fixture(scope="session")
def node(daemon):
    with cairn.connect(daemon.api, home=daemon.home) as client:
        yield client


@pytest.fixture(scope="session")
def model(node):
    """The built-in model, published."""
    return node.publish(CHECKOUT / "models/tiny", "acme/tiny", tag="v1", message="the built-in model", progress=False)
