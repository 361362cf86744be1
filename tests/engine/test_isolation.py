"""Isolation of renders: nothing leaks by accident, and templates of registries see nothing of trusted ones.

Templates of the user's own files and markup share one set of Node processes, templates out of registries (and those of
replays) another. Within a set, an attack is out of scope, as for any code that one runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests import rendering

from pomlflow import engine
from pomlflow.exceptions import RenderError
from pomlflow.settings import settings

JS = Callable[[str], str]
SECRET = "s3cret-of-the-user"


def text(markup: str, **variables: Any) -> str:
    return str(rendering.render(markup, variables)["messages"][0]["content"])


def registry_text(markup: str, **variables: Any) -> str:
    """Render as a template of a registry, which may read only the files that came with it, here none."""
    context, revive = engine.encode(variables)
    return str(engine.run(engine.Request(markup, context, revive, roots=())).output["messages"][0]["content"])


# --- by accident

LEFT = {
    "a global": "leak = 7",
    "a global of strict code": "globalThis.leak = 7",
    "a symbol's": "globalThis[Symbol.for('leak')] = 7",
    "a hidden global": "Object.defineProperty(globalThis, 'leak', { value: 7, configurable: true })",
    "a declaration": "(0, eval)('var leak = 7; function leak2() {}')",
    "a global of the language": "JSON = URL = Math = parseInt = 7",
    "a global of Node's": "Buffer = process = console = setTimeout = 7",
    "process": "process.leak = 7",
    "process.env": "process.env.leak = 7",
    "console": "console.log = () => 7",
    "a key of a variable": "const given = { a: {} }; for (const key of ['__proto__']) given.a[key].leak = 7",
}
SEEN = (
    "return JSON.stringify([typeof leak, typeof leak2, typeof {}.leak, globalThis[Symbol.for('leak')], typeof URL, "
    "Math.max(1, 2), parseInt('3'), Buffer.from('a').toString('hex'), process.leak, process.env.leak, "
    "typeof setTimeout, typeof console.log(1)])"
)


@pytest.mark.parametrize("code", LEFT.values(), ids=LEFT)
def test_no_variable_and_no_global_reaches_the_next_render(code: str, js: JS, worker: Callable[[], int]) -> None:
    """Also where the render fails; and the process stays."""
    before, pid = text(js(SEEN)), worker()
    for attempt in (f"{code}; return 1", f"{code}; throw new Error('failed')"):
        with contextlib.suppress(RenderError):
            text(js(attempt))
        assert text(js(SEEN)) == before
    assert worker() == pid


@pytest.mark.parametrize("timer", ["setTimeout", "setInterval", "setImmediate"])
def test_a_timer_ends_with_its_render(timer: str, js: JS) -> None:
    """Otherwise it would run during another render, and could read the variables of that."""
    assert text(js(f"{timer}(() => {{ globalThis.ran = true }}, 1); return 'now'")) == "now"
    slow = "const end = Date.now() + 30; while (end > Date.now()); return typeof ran"
    assert [text(js(slow)) for _ in range(3)] == ["undefined"] * 3


def test_a_timer_runs_within_its_render_and_can_be_cleared(js: JS) -> None:
    body = (
        "await new Promise(done => setTimeout(done, 5)); const no = setTimeout(() => { throw 0 }, 1); clearTimeout(no)"
    )
    element = "$$typeof: Symbol.for('react.transitional.element'), key: null, ref: null, props: {} "
    waits = f"<p>{{{{ ({{ {element}, type: async () => {{ {body}; return 'late' }} }} ) }}}}</p>"
    assert text(waits) == "late"


def test_what_was_described_in_a_schema_is_forgotten() -> None:
    """Zod refuses a second description of the same id."""
    schema = "z.object({ a: z.string().meta({ id: 'address' }) })"
    markup = f"<poml><p>a</p><output-schema parser='eval'>{schema}</output-schema></poml>"
    assert rendering.render(markup, {}) == rendering.render(markup, {})


# --- from registries to the user's own

# Replaces functions of the language, so that each text that starts with the secret is kept on a prototype.
PLANT = (
    "if (Array.prototype.kept) return 'planted'; const kept = Array.prototype.kept = []; "
    "for (const [of, name] of [[Array.prototype, 'push'], [String.prototype, 'replace'], [Map.prototype, 'get'], "
    "[JSON, 'parse'], [JSON, 'stringify']]) { const real = of[name]; of[name] = function (...given) { "
    "for (const one of [this, ...given]) if (typeof one === 'string' || one instanceof String) "
    "if (one.startsWith('s3cret')) kept[kept.length] = String(one); "
    "if (this) try { this.kept = kept } catch {} ; return Reflect.apply(real, this, given) } } ; return 'planted'"
)
LOOK = (
    "let found = []; for (const of of [globalThis, {}, [], '', /a/, () => 0, new Map(), JSON, Buffer, process]) "
    "try { if (of.kept) found = found.concat(of.kept) } catch {} ; return 'kept: ' + found.join()"
)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_registry_template_sees_no_data_of_trusted_templates(
    workers: int, fresh: None, js: JS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registry template leaves code, a trusted one renders a secret, another registry template looks for it."""
    monkeypatch.setattr("pomlflow.settings._current", dataclasses.replace(settings(), max_workers=workers))
    (tmp_path / "secret.txt").write_text(SECRET + "-in-a-file", encoding="utf-8")
    own = str(tmp_path / "own.poml")
    markup = '<p>{{key}} {{name.replace("a", "b")}}</p><document src="secret.txt" parser="txt"/>'
    read = f'<document src="{tmp_path}/secret.txt" parser="txt"/>'
    pids: set[tuple[int, ...]] = set()
    for _ in range(5):
        assert registry_text(js(PLANT)) == "planted"
        shown = rendering.render(markup, {"key": SECRET, "name": "Ada"}, path=own)["messages"][0]["content"]
        assert SECRET in str(shown)
        looked = registry_text(js(LOOK))
        assert looked.startswith("kept:")
        assert SECRET not in looked
        with pytest.raises(RenderError) as refused:
            registry_text(read)
        assert SECRET not in str(refused.value)
        pids.add(engine.stats().pids)
    assert len(pids) == 1, "a process was started for a change from one to the other"
    assert len(*pids) == 2
    assert engine.stats().restarted == 0


def test_the_same_attack_among_the_users_own_templates_is_out_of_scope(fresh: None, js: JS) -> None:
    """This shows what the two sets are for: within a set, code that a render leaves sees later variables."""
    assert text(js(PLANT)) == "planted"
    assert SECRET in text("<p>{{key}} {{name.replace('a', 'b')}}</p>", key=SECRET, name="Ada")
    assert SECRET in text(js(LOOK))
