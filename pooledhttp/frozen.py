"""Records that never change: settings and snapshots.

They are what frozen, keyword-only data classes are, without the import of `dataclasses`: that, and the code which it
compiles for each class, takes longer than to import everything else here.
"""

from __future__ import annotations

from .hints import TYPE_CHECKING, Any, ClassVar, Self, dataclass_transform


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Frozen:
    """A record: each annotated attribute of a subclass is a keyword, and what it is set to there its default.

    Two are equal if they are of one class and all their values are; such a record is a key if all its values may be.

    Raises:
        TypeError: A keyword is missing, or unknown.
    """

    _names: ClassVar[tuple[str, ...]] = ()
    _defaults: ClassVar[dict[str, Any]] = {}
    # Not shown by repr(): secrets.
    _unshown: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls) -> None:
        """Collect the names and the defaults."""
        names = [name for name in cls.__annotations__ if not name.startswith("_")]
        cls._names = tuple(dict.fromkeys((*cls._names, *names)))
        cls._defaults = {**cls._defaults, **{name: vars(cls)[name] for name in names if name in vars(cls)}}

    def __init__(self, *misplaced: object, **values: Any) -> None:  # noqa: ANN401  # subclasses say of which types
        if misplaced:
            raise TypeError(f"{type(self).__name__}() takes keywords only: {', '.join(self._names)}")
        chosen = {**self._defaults, **values}
        if len(chosen) != len(self._names) or chosen.keys() - self._names:
            raise self._misuse(chosen)
        vars(self).update(chosen)
        self.__post_init__()

    def __post_init__(self) -> None:
        """Check the values; what a subclass overrides."""

    def replace(self, **changes: Any) -> Self:  # noqa: ANN401  # as above
        """Return a record with some values changed, checked like a new one (also for `copy.replace`, Python 3.13).

        Raises:
            TypeError: A keyword is unknown; or as the class.
        """
        return type(self)(**{**self.as_dict(), **changes})

    def __replace__(self, **changes: Any) -> Self:  # noqa: ANN401  # as above
        return self.replace(**changes)

    def as_dict(self) -> dict[str, Any]:
        """Return the values by their names, in the order in which they are declared."""
        return {name: getattr(self, name) for name in self._names}

    if not TYPE_CHECKING:  # to a type checker, this would allow any name

        def __setattr__(self, name: str, value: object) -> None:
            raise AttributeError(
                f"{type(self).__name__} does not change: cannot set {name}; replace() makes another one"
            )

        def __delattr__(self, name: str) -> None:
            raise AttributeError(f"{type(self).__name__} does not change: cannot delete {name}")

    def __eq__(self, other: object) -> bool:
        if other.__class__ is not self.__class__:
            return NotImplemented
        return vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), *self.as_dict().values()))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.as_dict().items() if name not in self._unshown)
        return f"{type(self).__name__}({shown})"

    def _misuse(self, chosen: dict[str, Any]) -> TypeError:
        unknown = [name for name in chosen if name not in self._names]
        if unknown:
            return TypeError(f"{type(self).__name__}() got an unexpected keyword argument {unknown[0]!r}")
        missing = [name for name in self._names if name not in chosen]
        return TypeError(f"{type(self).__name__}() needs the keyword argument {missing[0]!r}")
