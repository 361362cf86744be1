"""Find the free names of a JavaScript expression, with tree-sitter."""

from __future__ import annotations

import re
import threading
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from pomlflow.engine.serialize import is_identifier

if TYPE_CHECKING:
    from tree_sitter import Node

_PLAIN = re.compile(r"[ \t]*([A-Za-z_$][A-Za-z0-9_$]*)(?:\.[A-Za-z_$][A-Za-z0-9_$]*)*\s*")
WORD = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*")
_IDENTIFIERS = frozenset(
    {"identifier", "shorthand_property_identifier", "shorthand_property_identifier_pattern"}  # a, {a}, ({a}) => …
)
_FUNCTIONS = frozenset(
    "arrow_function function_expression generator_function function_declaration generator_function_declaration "
    "method_definition class class_declaration".split()
)
_RETURN = "return "  # POML evaluates `new Function(…names, "return " + expression)`
_local = threading.local()


class Name(NamedTuple):
    """One use of a free identifier: its offset in the code, the identifier, and whether ``typeof`` tests it."""

    start: int
    name: str
    tested: bool = False


class Analysis(NamedTuple):
    """The names in an expression; none if it is `broken`, that is, not valid JavaScript."""

    uses: tuple[Name, ...]
    broken: bool = False

    @property
    def tested(self) -> frozenset[str]:
        """The names that ``typeof`` tests."""
        return frozenset(use.name for use in self.uses if use.tested)


class _Bind(NamedTuple):
    """An entry in the list of nodes to visit: from here on, these names are bound once more (1) or once less (-1)."""

    names: list[str]
    step: int


@lru_cache(maxsize=1024)
def analyse(code: str) -> Analysis:
    """Return the names in an expression."""
    plain = _PLAIN.fullmatch(code)  # most expressions; they need no parser
    if plain:
        return Analysis((Name(plain.start(1), plain[1]),) if is_identifier(plain[1]) else ())
    root = _tree(_RETURN + code)
    if root.has_error or not root.named_children:
        return Analysis((), broken=root.has_error)
    found = _free_names(root.named_children[0], ["arguments", *_declared(root)])
    return Analysis(tuple(use._replace(start=_character_offset(code, use.start)) for use in found))


def _character_offset(code: str, byte: int) -> int:
    """Return the offset in the code in characters for an offset in the parsed bytes."""
    byte -= len(_RETURN)
    return byte if code.isascii() else len(code.encode("utf-8", "replace")[:byte].decode("utf-8", "replace"))


def _free_names(statement: Node, names: list[str]) -> list[Name]:
    """Return the names in a statement, of which `names` are bound; offsets are in bytes."""
    bound: dict[str, int] = {}
    uses: list[Name] = []
    todo: list[tuple[Node, bool] | _Bind] = [(statement, False), _Bind(names, 1)]
    while todo:  # not recursive: code may be nested to any depth
        item = todo.pop()
        if isinstance(item, _Bind):
            for name in item.names:
                bound[name] = bound.get(name, 0) + item.step
            continue
        node, tested = item
        if node.type in _IDENTIFIERS:
            if not bound.get(_text(node)):
                uses.append(Name(node.start_byte, _text(node), tested))
            continue
        is_typeof = node.type == "unary_expression" and node.children[0].type == "typeof"
        inner = is_typeof or (tested and node.type == "parenthesized_expression")
        children = [(child, inner) for child in reversed(node.named_children)]
        inside = _bound_inside(node) if node.type in _FUNCTIONS else []
        todo += [_Bind(inside, -1), *children, _Bind(inside, 1)] if inside else children
    return sorted(uses)


def _bound_inside(node: Node) -> list[str]:
    """Return the names that a function or class binds inside itself."""
    name, body = node.child_by_field_name("name"), node.child_by_field_name("body")
    names = [] if name is None or name.type != "identifier" else [_text(name)]
    if node.type.startswith("class"):
        return names
    for field in ("parameter", "parameters"):
        parameters = node.child_by_field_name(field)
        names += [] if parameters is None else _pattern_names(parameters)
    if node.type != "arrow_function":
        names.append("arguments")
    return names if body is None or body.type != "statement_block" else names + _declared(body)


def _declared(body: Node) -> list[str]:
    """Return the names that a function's body declares; a declaration in a block counts for the whole body."""
    names: list[str] = []
    todo = list(body.named_children)
    while todo:
        node = todo.pop()
        if node.type == "variable_declarator" or (node.type == "for_in_statement" and node.child_by_field_name("kind")):
            names += _pattern_names(node.named_children[0])
        elif node.type == "catch_clause" and (parameter := node.child_by_field_name("parameter")):
            names += _pattern_names(parameter)
        elif node.type.endswith("_declaration") and (name := node.child_by_field_name("name")):
            names.append(_text(name))
        if node.type not in _FUNCTIONS:
            todo += node.named_children
    return names


def _pattern_names(node: Node) -> list[str]:
    """Return the names that a pattern or a list of parameters binds."""
    names: list[str] = []
    todo = [node]
    while todo:
        node = todo.pop()
        children = node.named_children
        if node.type in _IDENTIFIERS:
            names.append(_text(node))
        elif node.type in {"assignment_pattern", "object_assignment_pattern"}:
            todo += children[:1]
        elif node.type == "pair_pattern":
            todo += children[1:]
        elif node.type in {"rest_pattern", "array_pattern", "object_pattern", "formal_parameters"}:
            todo += children
    return names


def bound_by(pattern: str) -> list[str]:
    """Return the names that the name of a ``<let>`` or the item of a loop binds, which may be a pattern."""
    pattern = pattern.strip()
    if is_identifier(pattern):
        return [pattern]
    root = _tree(f"({pattern}) => 0")
    arrow = root.named_children[0].named_children[:1] if root.named_children and not root.has_error else []
    if arrow and arrow[0].type == "arrow_function":
        return _bound_inside(arrow[0])
    return WORD.findall(pattern)


def _tree(code: str) -> Node:
    parser = getattr(_local, "parser", None)
    if parser is None:  # one for each thread: a parser must not be shared while it parses
        import tree_sitter_javascript
        from tree_sitter import Language, Parser

        parser = _local.parser = Parser(Language(tree_sitter_javascript.language()))
    root: Node = parser.parse(code.encode("utf-8", "replace")).root_node
    return root


def _text(node: Node) -> str:
    return (node.text or b"").decode("utf-8", "replace")
