"""Malicious templates: none reaches the machine.

Each row of the table in docs/security.md has its test here or in test_sandbox.py.
What one template leaves for another is in test_isolation.py.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests import rendering

from pomlflow import engine
from pomlflow.exceptions import RenderError, RenderTimeoutError, WorkerDiedError

JS = Callable[[str], str]


def text(markup: str, limit: float = 30, **variables: Any) -> str:
    context, revive = engine.encode(variables)
    return str(engine.run(engine.Request(markup, context, revive), limit).output["messages"][0]["content"])


def refusal(markup: str) -> str:
    with pytest.raises(RenderError) as refused:
        rendering.render(markup, {})
    return str(refused.value)


# --- ways out of JavaScript

# Each of these works without the sandbox; in it, each ends with this message.
WAYS_OUT = {
    "process.getBuiltinModule('fs').readFileSync('/etc/passwd')": "process.getBuiltinModule is blocked",
    "process.mainModule.require('fs')": "process.mainModule.require is blocked",
    "Function('return this')().process.mainModule.require('fs')": "process.mainModule.require is blocked",
    "''.constructor.constructor('return process.mainModule.require')()('fs')": "process.mainModule.require is blocked",
    "process.binding('fs')": "process.binding is blocked",
    "process.dlopen({ exports: {} }, '/x.node')": "process.dlopen is blocked",
    "process.execve('/bin/sh')": "process.execve is blocked",
    "process.kill(process.ppid, 0)": "process.kill is blocked",
    "process.exit(0)": "process.exit is blocked",
    "process.reallyExit(0)": "process.reallyExit is blocked",
    "process.abort()": "process.abort is blocked",
    "process._linkedBinding('fs')": "process._linkedBinding is not a function",
    "process._debugProcess(1)": "process._debugProcess is not a function",
    "process._getActiveHandles()": "process._getActiveHandles is not a function",
    "process.report.writeReport('/x')": "process.report.writeReport is not a function",
    "process.loadEnvFile('/etc/environment')": "process.loadEnvFile is not a function",
    "process.stdin.constructor": "Cannot read properties of undefined",
    "console._stdout.constructor": "Cannot read properties of undefined",
    "new console.Console(process.stdout)": "console.Console is not a constructor",
    "fetch('http://127.0.0.1:1/')": "fetch is blocked",
    "globalThis[Symbol.for('undici.globalDispatcher.1')].request({})": "Cannot read properties of undefined",
    "new WebSocket('ws://127.0.0.1:1/')": "WebSocket is not defined",
    "new MessageChannel()": "MessageChannel is not defined",
    "new BroadcastChannel('x')": "BroadcastChannel is not defined",
    "WebAssembly.compile(new Uint8Array(1))": "WebAssembly is not defined",
    "new FinalizationRegistry(() => 0)": "FinalizationRegistry is not defined",
    "new SharedArrayBuffer(8)": "SharedArrayBuffer is not defined",
    "Atomics.waitAsync": "Atomics is not defined",
    "navigator.locks": "navigator is not defined",
    "new Blob(['x'])": "Blob is blocked",
}


@pytest.mark.parametrize(("code", "message"), WAYS_OUT.items(), ids=WAYS_OUT)
def test_no_way_leads_out(code: str, message: str, js: JS) -> None:
    assert message in refusal(js(f"return String({code})"))


def awaited(code: str) -> str:
    """Markup with a React element of its own, whose component is asynchronous and shows what the code returns."""
    assert not set('<&"\n') & set(code), "no XML in it"
    body = f"String(await (async () => {{ {code}; }} )())"
    kind = "$$typeof: Symbol.for('react.transitional.element'), key: null, ref: null, props: {} "
    element = f"{kind}, type: async () => {body}"
    assert "}}" not in element, "it would end the expression"
    return f"<p>{{{{ ({{ {element} }} ) }}}}</p>"


IMPORT = "`import('node:fs').then(m => globalThis.got = Object.keys(m), e => globalThis.got = 'refused ' + e)`"
EVALUATED = "eval.call.bind(eval, null, " + IMPORT + ")"


@pytest.mark.parametrize(
    "code",
    [
        f"eval({IMPORT})",
        f"(0, eval)({IMPORT})",
        f"Function({IMPORT})()",
        f"(async () => 0).constructor({IMPORT})()",
        f"setTimeout(eval, 0, {IMPORT})",
        f"setImmediate(eval, {IMPORT})",
        f"process.nextTick(eval, {IMPORT})",
        f"queueMicrotask({EVALUATED})",
        f"new ReadableStream({{ start: {EVALUATED} }} )",
        f"Promise.resolve({IMPORT}).then(eval)",
        f"[{IMPORT}].map(eval)",
        f"Buffer.from({{ length: 1, valueOf: {EVALUATED} }} )",
        f"new URL({{ toString: {EVALUATED} }} )",
    ],
)
def test_nothing_can_be_imported(code: str) -> None:
    """Also where V8 takes the code for a part of Node or of the worker, since a function of theirs calls `eval`."""
    waited = "return await new Promise(done => setTimeout(() => done(globalThis.got), 50))"
    assert text(awaited(f"try {{ {code} }} catch {{}} ; {waited}")).startswith("refused")


def test_a_stack_shows_no_function(js: JS) -> None:
    """V8 passes the functions on the stack, with their arguments, to a prepareStackTrace."""
    for code in ("Error.prepareStackTrace = (_, sites) => sites", "Object.prototype.prepareStackTrace = (_, s) => s"):
        assert text(js(f"{code}; return typeof new Error('x').stack")) == "string"


def test_a_blocked_api_names_the_setting_that_allows_it(js: JS) -> None:
    for code in ("process.getBuiltinModule('fs')", "fetch('http://127.0.0.1/')"):
        assert "pomlflow.configure(sandbox=False)" in refusal(js(code))


@pytest.mark.parametrize("name", ["Timeout", "Immediate"])
def test_a_timer_shows_no_other_timer(name: str, js: JS) -> None:
    """Node's own are members of lists that lead to all others."""
    made = f"set{name}(() => 0, 1)"
    assert text(js(f"return Object.getOwnPropertyNames({made}).join()")) == "hasRef,ref,unref"
    assert text(js(f"return {made}.constructor.name")) == "Object"


def test_only_harmless_globals_are_left(js: JS) -> None:
    """A global that Node adds one day is not kept, whatever it is."""
    shown = text(js("return Object.getOwnPropertyNames(globalThis).filter(k => !/^[A-Z]/.test(k)).sort().join(' ')"))
    assert shown.split() == sorted(
        "atob btoa clearImmediate clearInterval clearTimeout console crypto decodeURI decodeURIComponent encodeURI "
        "encodeURIComponent escape eval fetch global globalThis isFinite isNaN parseFloat parseInt performance process "
        "queueMicrotask setImmediate setInterval setTimeout structuredClone undefined unescape".split()
    )


def test_the_environment_is_not_seen(monkeypatch: pytest.MonkeyPatch, fresh: None, js: JS) -> None:
    monkeypatch.setenv("POMLFLOW_TEST_SECRET", "s3cret")
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    assert text(js("return JSON.stringify(process.env)")) == '{"TZ":"Asia/Tokyo"}'
    engine.close()


def test_no_connection_is_made(js: JS) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        for markup in (
            f'<webpage url="{url}"/>',
            f'<document src="{url}" parser="txt"/>',
            f'<img src="{url}"/>',
            f'<table src="{url}" parser="csv"/>',
            js(f"return fetch('{url}')"),
        ):
            assert refusal(markup)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_nothing_of_the_machine_is_visible(js: JS) -> None:
    shown = text(js("return JSON.stringify([process, Object.keys(process)])"))
    for secret in (os.uname().nodename if sys.platform != "win32" else "?", str(os.getppid()), str(Path.home() / ".")):
        assert f'"{secret}"' not in shown


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_node_runs_with_permission_flags(fresh: None, worker: Callable[[], int]) -> None:
    """The second line of defence: Node's permission model allows reading only the worker's own files."""
    command = Path(f"/proc/{worker()}/cmdline").read_text(encoding="utf-8").split("\0")
    assert "--permission" in command
    assert not [flag for flag in command if flag.startswith(("--allow-child", "--allow-worker", "--allow-fs-write"))]
    allowed = [flag.partition("=")[2] for flag in command if flag.startswith("--allow-fs-read")]
    assert allowed
    for path in allowed:
        assert path.endswith((".cjs", "/prepared", "poml/js/cli.js", "poml/node_modules/*")), path


# --- what one render leaves for the next


@pytest.mark.parametrize(
    "thrown",
    [
        "{ get message() { throw this } }",
        "{ name: { toString() { throw 0 } } }",
        "new Proxy({}, { get() { throw 0 } } )",
        "{ message: 'x', startIndex: 1n }",
    ],
)
def test_an_error_that_cannot_be_read_is_an_error_all_the_same(thrown: str, hello: Callable[[], str]) -> None:
    assert refusal(awaited(f"throw {thrown}"))
    assert hello() == "Hello Ada"


def test_promises_without_end_delay_only_their_own_render(js: JS, hello: Callable[[], str]) -> None:
    with pytest.raises(RenderTimeoutError):
        text(js("const again = () => Promise.resolve().then(again); again(); return 1"), 0.5)
    assert hello() == "Hello Ada"


def test_memory_of_earlier_renders_is_not_seen(js: JS) -> None:
    secret = "s3cret-in-memory" * 50
    for _ in range(20):
        text("<p>{{v.length}} {{Buffer.from(v).length}}</p>", v=secret)
    for size in (100, 4096, 100_000):
        assert text(js(f"return Buffer.allocUnsafe({size}).filter(byte => byte !== 0).length")) == "0"
    assert int(text(js("return Buffer.from('ab').buffer.byteLength"))) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="prlimit")
def test_buffers_without_end_are_ended(
    fresh: None, js: JS, hello: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """V8's heap limit does not count buffers. The limit is smaller than usual, so that the test does not swap."""
    import resource

    assert hello() == "Hello Ada"
    [pid] = engine.stats().pids
    assert resource.prlimit(pid, resource.RLIMIT_DATA) == (2 << 30, 2 << 30)
    engine.close()
    with monkeypatch.context() as patch:
        patch.setattr("pomlflow.engine.process._DATA", 1 << 30)
        with pytest.raises(WorkerDiedError, match="Allocation failed"):
            text(js("const all = []; for (;;) all.push(Buffer.alloc(1e8, 1))"))
    assert hello() == "Hello Ada"


# --- invalid data for Python


def test_an_error_that_names_another_file_shows_none_of_it(tmp_path: Path, js: JS) -> None:
    """A thrown object may have any `sourcePath`; a line of that file would be in the message."""
    secret = tmp_path / "secret.txt"
    secret.write_text("the secret's line", encoding="utf-8")
    thrown = f"Object.assign(new Error('x'), {{ sourcePath: {str(secret)!r}, startIndex: 0, endIndex: 3 }})"
    shown = refusal(js(f"throw {thrown}"))
    assert "the secret's line" not in shown


@pytest.mark.parametrize("value", ["x", -1, 1e99, {"a": 1}, [1], True, None])
def test_an_error_with_invalid_places_is_reported(value: Any, js: JS) -> None:
    import json

    lie = json.dumps(value)
    assert "lie" in refusal(js(f"throw Object.assign(new Error('lie'), {{ startIndex: {lie}, sourcePath: {lie} }})"))


def test_a_response_without_a_request_is_ignored(js: JS) -> None:
    """The protocol's own frames, printed."""
    line = "console.log('x'); process.stdout.write(JSON.stringify({ id: 1, ok: { } }) + String.fromCharCode(10))"
    assert text(js(f"{line}; return 'mine'")) == "mine"


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_template_cannot_signal_its_parent(js: JS) -> None:
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals are handled in the main thread")
    got: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: got.append(number))
    try:
        assert "process.kill is blocked by the sandbox" in refusal(js(f"return process.kill({os.getpid()}, 'SIGUSR1')"))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert got == []
