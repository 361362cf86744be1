"""What a template that was written to do harm comes to: nothing of it leaves its render.

Each row of README's table of what is closed has its test here or in test_sandbox.py; so have those of what is open.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pomlflow import engine
from pomlflow.exceptions import RenderError, RenderTimeoutError, WorkerDiedError

JS = Callable[[str], str]


def text(markup: str, limit: float = 30, **variables: Any) -> str:
    context, revive = engine.encode(variables)
    return str(engine.run(engine.Request(markup, context, revive), limit).output["messages"][0]["content"])


def refusal(markup: str) -> str:
    with pytest.raises(RenderError) as refused:
        engine.render(markup, {})
    return str(refused.value)


# --- ways out of JavaScript

OUT = {
    "require": "require",
    "module": "module",
    "a builtin module": "process.getBuiltinModule('fs').readFileSync('/etc/passwd')",
    "the main module": "process.mainModule.require('fs')",
    "binding": "process.binding('fs')",
    "linked binding": "process._linkedBinding('fs')",
    "dlopen": "process.dlopen({ exports: {} }, '/x.node')",
    "execve": "process.execve('/bin/sh')",
    "kill": "process.kill(process.ppid, 0)",
    "debug": "process._debugProcess(1)",
    "exit": "process.exit(0)",
    "really exit": "process.reallyExit(0)",
    "abort": "process.abort()",
    "report": "process.report.writeReport('/tmp/x')",
    "env file": "process.loadEnvFile('/etc/environment')",
    "handles": "process._getActiveHandles()",
    "stdout's class": "new process.stdout.constructor(1).fd.x",
    "stdin": "process.stdin.constructor",
    "process's class": "process.constructor.getBuiltinModule('fs')",
    "console's streams": "console._stdout.constructor",
    "console's class": "new console.Console(1)",
    "fetch": "fetch('http://127.0.0.1:1/')",
    "WebSocket": "new WebSocket('ws://127.0.0.1:1/')",
    "EventSource": "new EventSource('http://127.0.0.1:1/')",
    "XMLHttpRequest": "new XMLHttpRequest()",
    "a worker": "new Worker('x')",
    "a message channel": "new MessageChannel()",
    "a broadcast": "new BroadcastChannel('x')",
    "web assembly": "WebAssembly.compile(new Uint8Array(1))",
    "finalizers": "new FinalizationRegistry(() => 0)",
    "shared memory": "new SharedArrayBuffer(8)",
    "atomics": "Atomics.waitAsync",
    "navigator": "navigator.locks",
    "storage": "localStorage.x",
    "a blob": "new Blob(['x'])",
    "a regular expression": "/a/.compile('b')",
    "vm": "new (Function('return vm')()).Script('1')",
    "global of a function": "Function('return this')().process.mainModule.require('fs')",
    "constructor's constructor": "''.constructor.constructor('return process.mainModule.require')()('fs')",
    "eval": "(0, eval)('require(1)')",
    "undici": "globalThis[Symbol.for('undici.globalDispatcher.1')].request({})",
}


@pytest.mark.parametrize("code", OUT.values(), ids=OUT)
def test_no_way_leads_out(code: str, js: JS) -> None:
    assert refusal(js(f"return String({code})"))


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
    """Also where V8 takes the code for Node's own, or the worker's, since that is what calls `eval`."""
    waited = "return await new Promise(done => setTimeout(() => done(globalThis.got), 50))"
    assert text(awaited(f"try {{ {code} }} catch {{}} ; {waited}")).startswith("refused")


def test_a_stack_shows_no_function(js: JS) -> None:
    """V8 gives the functions that run, and what they were called with, to whoever sets this."""
    for code in ("Error.prepareStackTrace = (_, sites) => sites", "Object.prototype.prepareStackTrace = (_, s) => s"):
        assert text(js(f"{code}; return typeof new Error('x').stack")) == "string"


def test_what_is_closed_says_how_to_open_it(js: JS) -> None:
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


def test_the_machine_is_not_told_of(js: JS) -> None:
    told = text(js("return JSON.stringify([process, Object.keys(process)])"))
    for secret in (os.uname().nodename if sys.platform != "win32" else "?", str(os.getppid()), str(Path.home() / ".")):
        assert f'"{secret}"' not in told


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_node_holds_the_worker_too(fresh: None, worker: Callable[[], int]) -> None:
    """The second wall: were a template to reach Node's own modules, Node would let it read only what the worker is."""
    command = Path(f"/proc/{worker()}/cmdline").read_text(encoding="utf-8").split("\0")
    assert "--permission" in command
    assert not [flag for flag in command if flag.startswith(("--allow-child", "--allow-worker", "--allow-fs-write"))]
    allowed = [flag.partition("=")[2] for flag in command if flag.startswith("--allow-fs-read")]
    assert allowed
    for path in allowed:
        assert path.endswith((".cjs", "/compiled", "poml/js/cli.js", "poml/node_modules/*")), path


# --- what one render leaves for the next

POLLUTED = {
    "Object.prototype": "Object.prototype.leak = 7",
    "Object.prototype's own": "Object.prototype.toString = () => 'evil'",
    "defined": "Object.defineProperty(Object.prototype, 'leak', { value: 7 })",
    "__proto__": "({}).__proto__.leak = 7",
    "__defineGetter__": "Object.prototype.__defineGetter__('leak', () => 7)",
    "a setter": "Object.defineProperty(Object.prototype, 'toString', { value: () => 'evil', writable: false })",
    "Array.prototype": "Array.prototype.leak = 7",
    "Array.prototype's own": "Array.prototype.join = () => 'evil'",
    "a getter on it": "Object.defineProperty(Array.prototype, 'map', { get: () => () => 'evil' })",
    "an index of it": "Array.prototype[0] = 'evil'",
    "deleted": "delete Array.prototype.join",
    "fixed": "Object.defineProperty(Array.prototype, 'leak', { value: 7 })",
    "frozen": "Object.freeze(Array.prototype)",
    "another prototype": "Object.setPrototypeOf(Array.prototype, { leak: 7 })",
    "String.prototype": "String.prototype.toUpperCase = () => 'evil'",
    "RegExp.prototype": "RegExp.prototype.exec = () => null",
    "RegExp.prototype's getter": "Object.defineProperty(RegExp.prototype, 'flags', { get: () => 'evil' })",
    "Function.prototype": "Function.prototype.call = () => 'evil'",
    "Promise.prototype": "Promise.prototype.then = () => 'evil'",
    "Map.prototype": "Map.prototype.get = () => 'evil'",
    "Error.prototype": "Error.prototype.message = 'evil'",
    "WeakMap.prototype": "WeakMap.prototype.get = () => 'evil'",
    "an iterator": "Object.getPrototypeOf([][Symbol.iterator]()).next = () => ({ done: true })",
    "a generator": "Object.getPrototypeOf(function* () {}).prototype.next = () => ({ done: true })",
    "typed arrays": "Object.getPrototypeOf(Uint8Array).prototype.subarray = () => 'evil'",
    "Buffer": "Buffer.from = () => 'evil'",
    "Buffer.prototype": "Buffer.prototype.toString = () => 'evil'",
    "JSON": "JSON.stringify = () => 'evil'",
    "Math": "Math.max = () => 7",
    "a global": "leak = 7",
    "a hidden global": "Object.defineProperty(globalThis, 'leak', { value: 7, configurable: true })",
    "a fixed global": "Object.defineProperty(globalThis, 'leak', { value: 7 })",
    "a symbol's": "globalThis[Symbol.for('leak')] = 7",
    "a global replaced": "JSON = { stringify: () => 'evil', parse: () => 'evil' }",
    "a declaration": "(0, eval)('var leak = 7; function leak2() {}')",
    "console": "console.log = () => 7",
    "process": "process.leak = 7",
    "process.env": "process.env.leak = 7",
    "timers": "setTimeout = () => 7",
    "url": "URL.prototype.toString = () => 'evil'",
    "Symbol.for": "Symbol.for = () => 7",
}
PRISTINE = (
    "return JSON.stringify([typeof leak, typeof leak2, typeof {}.leak, typeof [].leak, [][0], String({}), "
    "[1, 2].join('-'), [1].map(String), 'a'.toUpperCase(), /a(.)/.exec('ab')[1], /a/g.flags, Math.max(1, 2), "
    "[...[1, 2]], process.leak, "
    "process.env.leak, Buffer.from('a').toString('hex'), new Map([[1, 2]]).get(1), new Error('m').message, "
    "globalThis[Symbol.for('leak')], new URL('http://a/').toString(), (function () { return this }).call(5) + 1, "
    "Object.isFrozen(Array.prototype), [...(function* () { yield 3 })()], typeof setTimeout, typeof console.log(1)])"
)


@pytest.mark.parametrize("code", POLLUTED.values(), ids=POLLUTED)
def test_no_change_reaches_the_next_render(code: str, js: JS) -> None:
    """Also not one that strict code makes, nor one whose render fails."""
    before = text(js(PRISTINE))
    for attempt in (code, f"(() => {{ 'use strict'; {code} }})()", f"{code}; throw new Error('failed')"):
        with contextlib.suppress(RenderError, WorkerDiedError):
            text(js(f"{attempt}; return 1"))
        assert text(js(PRISTINE)) == before
    assert text("<poml><list><item for='x in v'>{{x.a}}</item></list></poml>", v=[{"a": 1}, {"a": 2}]) == "- 1\n- 2"


SPY = "Array.prototype.join = () => 'spied'"


@pytest.mark.parametrize(
    "markup",
    [
        awaited(f"throw {{ get message() {{ {SPY}; return 'x' }} }}"),
        awaited(f"throw {{ message: 'x', name: {{ toString() {{ {SPY}; return 'x' }} }} }}"),
        awaited(f"throw {{ message: 'x', get startIndex() {{ setTimeout(() => {{ {SPY} }} , 0); return 1 }} }}"),
        awaited(
            f"throw {{ message: 'x', get sourcePath() {{ Promise.resolve().then(() => {{ {SPY} }} ); return 1 }} }}"
        ),
        "<poml><p>a</p><output-schema parser='eval'>({ toJSON() { SPY; return {} } })</output-schema></poml>",
        "<poml><p>a</p><output-schema parser='eval'>({ toJSON() { SPY; throw 0 } })</output-schema></poml>",
    ],
)
def test_no_code_runs_while_the_answer_is_written(markup: str, js: JS) -> None:
    """An error's properties and a schema's `toJSON` are asked when the template is done: they are put back too."""
    slow = "const end = Date.now() + 5; while (end > Date.now()); return [1, 2].join()"
    for _ in range(3):
        with contextlib.suppress(RenderError):
            engine.render(markup.replace("SPY", SPY), {})
        assert text(js(slow)) == "1,2"


@pytest.mark.parametrize(
    "thrown",
    [
        "{ get message() { throw this } }",
        "{ name: { toString() { throw 0 } } }",
        "new Proxy({}, { get() { throw 0 } } )",
        "{ message: 'x', startIndex: 1n }",
        "(Array.prototype.map = () => [], Array.prototype.filter = () => { throw 0 } , { message: 'x' })",
    ],
)
def test_an_error_that_cannot_be_read_is_an_error_all_the_same(thrown: str, hello: Callable[[], str]) -> None:
    assert refusal(awaited(f"throw {thrown}"))
    assert hello() == "Hello Ada"


def test_a_process_that_cannot_be_cleaned_is_not_used_again(worker: Callable[[], int], js: JS) -> None:
    before = worker()
    assert text(js("Object.defineProperty(globalThis, 'leak', { value: 7 }); return leak")) == "7"
    assert worker() != before


def test_renders_after_such_a_process_never_run_in_it_and_none_fails(js: JS) -> None:
    """It ends after its answer, when the next request may have been sent: that one is done in another process."""
    leaky = js("Object.defineProperty(Array.prototype, 'leak', { get() { return n } }); return n")
    for number in range(5):
        assert engine.render(leaky, {"n": number})["messages"][0]["content"] == str(number)
        assert text("<p>{{typeof [].leak}}</p>") == "undefined"
    assert engine.stats().failed == 0


@pytest.mark.parametrize("slow", [False, True])
def test_what_a_render_leaves_is_gone_for_the_next_one_whenever_it_is_cleaned_up(slow: bool, js: JS) -> None:
    """Behind the answer of a quick render, before that of a slow one, which may have left more."""
    wait = "const end = Date.now() + 20; while (end > Date.now());" if slow else ""
    left = js(
        f"{wait} Array.prototype.join = () => 'spied'; Error.prototype.name = 'spied'; globalThis.spied = 1; return 1"
    )
    for _ in range(50):
        assert text(left) == "spied"
        assert text(js("return [[1, 2].join(), new Error().name, typeof spied].join()")) == "1,2,Error,undefined"


@pytest.mark.parametrize("timer", ["setTimeout", "setInterval", "setImmediate"])
def test_a_timer_ends_with_its_render(timer: str, js: JS) -> None:
    """It would run in the midst of another's, and see its variables."""
    spy = "Array.prototype.join = function () { return 'spied' }"
    assert text(js(f"{timer}(() => {{ {spy} }}, 1); return 'now'")) == "now"
    slow = "const end = Date.now() + 30; while (end > Date.now()); return [1, 2].join()"
    assert [text(js(slow)) for _ in range(3)] == ["1,2"] * 3


def test_promises_without_end_hold_nothing_but_their_own_render(js: JS, hello: Callable[[], str]) -> None:
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


ZOD = {
    "a function": "z.string = () => z.number()",
    "a class": "z.ZodString = z.ZodNumber",
    "a prototype": "z.ZodString.prototype.toJSON = () => ({ spied: 1 })",
    "the core's": "z.core.$ZodString.prototype.spied = () => 1",
    "how it makes them": "z.ZodString.init = () => 0",
    "what it says": "z.setErrorMap(() => ({ message: 'spied' }))",
    "its settings": "z.config({ customError: () => 'spied' })",
    "its settings by hand": "z.core.globalConfig.customError = () => 'spied'",
    "a pattern": "z.regexes.email.compile('spied')",
    "where a pattern is": "z.regexes.email.lastIndex = { valueOf() { globalThis.spied = 1 } }",
    "its registry": "z.globalRegistry.add(z.string(), { title: 'spied' })",
    "its registry's map": "z.globalRegistry._map.get = () => ({ title: 'spied' })",
    "a registry's": "z.globalRegistry.constructor.prototype.get = () => ({ title: 'spied' })",
}
USED = (
    "z.object({ a: z.string().email().describe('an address').meta({ id: 'address' }), said: z.literal([String("
    "z.string().safeParse(5).error.issues[0].message), z.globalRegistry._map.size, typeof spied, "
    "String(z.email().safeParse('a@b.cd').success)].join()) })"
)


@pytest.mark.parametrize("evil", ZOD.values(), ids=ZOD)
def test_zod_is_the_same_for_all(evil: str) -> None:
    """What schemas are made with is shared by all renders: classes, settings, patterns, and what was described."""

    def schema(code: str) -> Any:
        markup = "<poml><p>a</p><output-schema parser='eval'>{}</output-schema></poml>"
        return engine.render(markup.format(code), {}).get("schema")

    good = schema(USED)
    told = good["properties"]["said"]["const"]
    assert told == "Invalid input: expected string, received number,2,undefined,true"
    for attempt in (f"({evil}, z.object({{}}))", f"(() => {{ {evil}; return z.object({{}}) }})()"):
        with contextlib.suppress(RenderError):
            schema(attempt)
        assert schema(USED) == good


def test_all_that_code_shares_is_locked(js: JS) -> None:
    """Walked from what expressions can make, errors of Node's included: nothing on the way can be added to."""
    made = (
        "[1].values().map(String)|'a'.matchAll(/a/g)|new URLSearchParams().keys()|new TextDecoder()|new TextEncoder()|"
        "new Intl.Segmenter().segment('a')|new Intl.Segmenter().segment('a')[Symbol.iterator]()|new Intl.Locale('de')|"
        "new Intl.NumberFormat().format|setTimeout(() => 0)|process|console|crypto|performance|(async () => 0)()|"
        "new Map().keys()|Iterator.from({ next() {} })|Buffer.from('a').entries()|new URL('a:b').searchParams|"
        "new URL('')|new URL()|new URLSearchParams([[1]])|new TextDecoder('?')|new TextDecoder().decode(1)|"
        "Buffer.from(1)|Buffer.alloc(-1)|Buffer.alloc(1).toString('?')|Buffer.alloc(3).swap16()|structuredClone()|"
        "Buffer.alloc(1).readInt8(9)|Buffer.alloc(0).readInt8(0)|Buffer.alloc(1, 'z', 'hex')|atob('?')|"
        "new ReadableStream().getReader()|new ReadableStream().values()|structuredClone(() => 0)|"
        "new ReadableStream({ type: 'bytes' })[Object.getOwnPropertySymbols(new ReadableStream())[0]].controller|"
        "URLSearchParams.prototype.keys.call(1)|queueMicrotask(1)|btoa('\\u1234')"
    )
    walk = (
        "const seen = new Set([Array.prototype, RegExp.prototype, globalThis]); const open = []; "
        "const walk = (value, path) => { if (Object(value) !== value) return; if (seen.has(value)) return; "
        "seen.add(value); if (path) if (Object.isExtensible(value)) open.push(path); "
        "walk(Object.getPrototypeOf(value), path + '.__proto__'); const of = Object.getOwnPropertyDescriptors(value); "
        "if (path) for (const key of Reflect.ownKeys(of)) for (const part of ['value', 'get', 'set']) "
        "walk(of[key][part], path + '.' + String(key)); } ; "
        "const make = code => { try { return (0, eval)('(' + code + ')') } catch (error) { return error } } ; "
        f"for (const code of {made.split('|')!r}) walk(make(code), ''); return 'open: ' + open.join()"
    )
    assert text(js(walk)) == "open:"


@pytest.mark.skipif(sys.platform != "linux", reason="prlimit")
def test_buffers_without_end_are_ended(
    fresh: None, js: JS, hello: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They lie outside of V8's heap, and its cap. A smaller limit than usual, so that nobody's machine swaps."""
    import resource

    assert hello() == "Hello Ada"
    [process] = engine._engine.pool._all
    assert resource.prlimit(process.pid, resource.RLIMIT_DATA) == (4 << 30, 4 << 30)
    engine.close()
    with monkeypatch.context() as patch:
        patch.setattr("pomlflow.engine.process._DATA", 1 << 30)
        with pytest.raises(WorkerDiedError, match="Allocation failed"):
            text(js("const all = []; for (;;) all.push(Buffer.alloc(1e8, 1))"))
    assert hello() == "Hello Ada"


# --- lies to this side


def test_an_error_that_names_another_file_shows_none_of_it(tmp_path: Path, js: JS) -> None:
    """A thrown object may have any `sourcePath`; its line would stand in the message."""
    secret = tmp_path / "secret.txt"
    secret.write_text("the secret's line", encoding="utf-8")
    thrown = f"Object.assign(new Error('x'), {{ sourcePath: {str(secret)!r}, startIndex: 0, endIndex: 3 }})"
    told = refusal(js(f"throw {thrown}"))
    assert "the secret's line" not in told


@pytest.mark.parametrize("value", ["x", -1, 1e99, {"a": 1}, [1], True, None])
def test_an_error_with_senseless_places_is_told(value: Any, js: JS) -> None:
    import json

    lie = json.dumps(value)
    assert "lie" in refusal(js(f"throw Object.assign(new Error('lie'), {{ startIndex: {lie}, sourcePath: {lie} }})"))


def test_what_answers_to_nobody_is_passed_over(js: JS) -> None:
    """The protocol's own words, printed."""
    line = "console.log('x'); process.stdout.write(JSON.stringify({ id: 1, ok: { } }) + String.fromCharCode(10))"
    assert text(js(f"{line}; return 'mine'")) == "mine"


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_template_cannot_end_what_started_it(js: JS) -> None:
    got: list[int] = []
    if threading.current_thread() is threading.main_thread():
        before = signal.signal(signal.SIGUSR1, lambda number, _: got.append(number))
        try:
            assert refusal(js(f"return process.kill({os.getpid()}, 'SIGUSR1')"))
        finally:
            signal.signal(signal.SIGUSR1, before)
    assert got == []
