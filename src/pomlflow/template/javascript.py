"""Find the free names of a JavaScript expression, with tree-sitter."""

from __future__ import annotations

import re
import threading
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from pomlflow.engine.serialize import is_identifier

if TYPE_CHECKING:
    from tree_sitter import Node

_PLAIN = re.compile(
    r"[ \t]*([A-Za-z_$][A-Za-z0-9_$]*)(?:\.([A-Za-z_$][A-Za-z0-9_$]*))?(?:\.[A-Za-z_$][A-Za-z0-9_$]*)*\s*"
)
WORD = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*")
# How a name is used: tested by `typeof`, only its length, by itself, or in another way.
TESTED, LENGTH, ALONE, _OTHER = "typeof", "length", "alone", "other"
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
    """One use of a free identifier: its offset in the code, the identifier, and how it is used."""

    start: int
    name: str
    how: str


class Analysis(NamedTuple):
    """The names in an expression; none if it is `broken`, that is no JavaScript."""

    uses: tuple[Name, ...]
    tested: frozenset[str] = frozenset()
    assigned: tuple[str, ...] = ()
    broken: bool = False


class _Bind(NamedTuple):
    """An entry in the list of nodes to visit: from here on, these names are bound once more (1) or once less (-1)."""

    names: list[str]
    step: int


@lru_cache(maxsize=1024)
def analyse(code: str) -> Analysis:
    """Return the names in an expression."""
    plain = _PLAIN.fullmatch(code)  # most expressions; they need no parser
    if plain:
        name, member = plain.groups()
        how = ALONE if member is None else LENGTH if member == "length" else _OTHER
        return Analysis((Name(plain.start(1), name, how),) if is_identifier(name) else ())
    root = _tree(_RETURN + code)
    if root.has_error or not root.named_children:
        return Analysis((), broken=root.has_error)
    found = _visit(root.named_children[0], ["arguments", *_declared(root)])
    return found._replace(uses=tuple(use._replace(start=_characters(code, use.start)) for use in found.uses))


def _characters(code: str, byte: int) -> int:
    """Return the offset in the code in characters for an offset in the parsed bytes."""
    byte -= len(_RETURN)
    return byte if code.isascii() else len(code.encode("utf-8", "replace")[:byte].decode("utf-8", "replace"))


def _visit(statement: Node, names: list[str]) -> Analysis:
    """Return the names in a statement, of which `names` are bound; offsets are in bytes."""
    bound: dict[str, int] = {}
    uses: list[Name] = []
    assigned: dict[str, None] = {}
    todo: list[tuple[Node, str] | _Bind] = [(statement, ALONE), _Bind(names, 1)]
    while todo:  # not recursive: code may be nested to any depth
        item = todo.pop()
        if isinstance(item, _Bind):
            for name in item.names:
                bound[name] = bound.get(name, 0) + item.step
            continue
        node, how = item
        if node.type in _IDENTIFIERS:
            if not bound.get(_text(node)):
                uses.append(Name(node.start_byte, _text(node), how))
            continue
        if node.type == "assignment_expression":  # in sloppy mode, assigning to an unknown name makes a variable
            left, *right = node.named_children
            targets = _pattern_names(left)
            assigned.update(dict.fromkeys(name for name in targets if not bound.get(name)))
            todo += [(left, ALONE), _Bind(targets, 1), *((child, ALONE) for child in reversed(right))]
        elif node.type in _FUNCTIONS:
            inside = _bound_inside(node)
            todo += [_Bind(inside, -1), *_child_uses(node, how), _Bind(inside, 1)]
        else:
            todo += _child_uses(node, how)
    tested = frozenset(use.name for use in uses if use.how == TESTED)
    return Analysis(tuple(sorted(uses)), tested, tuple(assigned))


def _child_uses(node: Node, how: str) -> list[tuple[Node, str]]:
    """Return the children of a node, the last first, each with how the node uses it."""
    children = node.named_children
    ways, kind = [ALONE] * len(children), node.type
    if not children:
        return []
    if kind == "parenthesized_expression":
        ways[0] = how
    elif kind == "member_expression":
        ways[0] = LENGTH if children[-1].text == b"length" else _OTHER
    elif kind in {"subscript_expression", "call_expression", "new_expression"}:
        ways[0] = _OTHER
    elif kind == "unary_expression" and node.children[0].type == "typeof":
        ways[0] = TESTED
    return list(zip(reversed(children), reversed(ways), strict=True))


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


class Found(NamedTuple):
    """A node of an expression: its offset, its code, and the code of its parts, operators included."""

    start: int
    text: str
    parts: tuple[str, ...]


def find_nodes(code: str, *kinds: str) -> list[Found]:
    """Return each node of an expression that has one of these types of tree-sitter's, in reading order."""
    found: list[Found] = []
    todo = [_tree(_RETURN + code)]
    while todo:
        node = todo.pop()
        if node.type in kinds:
            parts = tuple(_text(part) for part in node.children)
            found.append(Found(_characters(code, node.start_byte), _text(node), parts))
        todo += node.named_children
    return sorted(found)


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
