"""Read the docstrings below the fields of a class, for `--help` and the generated reference."""

from __future__ import annotations

import ast
import inspect
import textwrap


def field_docs(model: type) -> dict[str, str]:
    """Return field -> the docstring below it, in one line, including fields of base classes; "" without one."""
    docs: dict[str, str] = {}
    for base in reversed(model.__mro__):
        is_parametrised = "[" in base.__name__  # Model[int] has no source of its own
        if "__annotations__" in vars(base) and not is_parametrised and not base.__module__.startswith("pydantic"):
            docs |= _own_docs(base)
    return docs


def _own_docs(model: type) -> dict[str, str]:
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(definition, ast.ClassDef)
    docs: dict[str, str] = {}
    for statement, following in zip(definition.body, [*definition.body[1:], ast.Pass()], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            docs[statement.target.id] = _text(following)
    return docs


def _text(statement: ast.stmt) -> str:
    """Return the text of a statement that is only a string; "" for any other."""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        value = statement.value.value
        return " ".join(value.split()) if isinstance(value, str) else ""
    return ""
