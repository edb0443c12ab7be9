"""What annotations are made of, without the import of `typing`.

To a type checker each name is `typing`'s own.  At run time nobody here looks at an annotation, and `typing`, with what
it imports and what it compiles for each `Protocol` and `TypedDict`, took a third of our import.  So there each name
stands for something plain that is no narrower: `Any` for `object`, a literal for its type, a variable for its bound.
`typing.get_type_hints` goes on working for users, and answers with those.
"""

__all__ = [
    "TYPE_CHECKING",
    "Any",
    "ClassVar",
    "Final",
    "Literal",
    "NamedTuple",
    "Protocol",
    "Self",
    "TypedDict",
    "TypeVar",
    "Unpack",
    "cast",
    "dataclass_transform",
    "overload",
]

TYPE_CHECKING = False  # type checkers take a variable of this name for true, whatever it says

if TYPE_CHECKING:
    from typing import (
        Any,
        ClassVar,
        Final,
        Literal,
        NamedTuple,
        Protocol,
        Self,
        TypedDict,
        TypeVar,
        Unpack,
        cast,
        dataclass_transform,
        overload,
    )
else:
    from collections import namedtuple

    Any = Self = Protocol = object

    class _What:
        def __class_getitem__(cls, hint):
            return hint

    ClassVar = Final = Unpack = _What

    class Literal:
        def __class_getitem__(cls, value):
            return type(value[0] if isinstance(value, tuple) else value)

    class TypedDict(dict):
        def __init_subclass__(cls, *, total=True):
            pass

    class _NamedTupleMeta(type):
        def __new__(cls, name, bases, body):
            if not bases:
                return super().__new__(cls, name, bases, body)
            made = namedtuple(name, body["__annotations__"], module=body["__module__"])  # noqa: PYI024
            made.__doc__ = body["__doc__"]
            made.__annotations__ = body["__annotations__"]
            return made

    class NamedTuple(metaclass=_NamedTupleMeta):
        pass

    def TypeVar(name, *constraints, bound=object):  # noqa: N802  # typing's name
        return bound

    def cast(kind, value):
        return value

    def overload(function):
        return function

    def dataclass_transform(**_):
        return overload
