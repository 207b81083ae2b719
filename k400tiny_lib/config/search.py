"""What `tune` searches over: the names in `search`, and the range of each."""

import difflib
from collections.abc import Iterator, Mapping

from k400tiny_lib.config.declaration import NONE, Range
from k400tiny_lib.config.parameters import PARAMETERS, Config
from k400tiny_lib.errors import UserError, printable

RANGES = {name: p.search for name, p in PARAMETERS.items() if p.search is not None}


def search_ranges(search: str) -> dict[str, Range]:
    """The range of each parameter that `search` names, in the order in which they are declared.

    Raises:
        UserError: if a name is no parameter or has no range.
    """
    names = [name.strip() for name in search.split(",") if name.strip()]
    if not names:
        raise UserError(f"search: {printable(search)!r} names nothing. Needed: {_some_of()}.")
    for name in names:
        if name not in RANGES:
            near = difflib.get_close_matches(name, RANGES, n=1, cutoff=0.6)
            what = "has no range" if name in PARAMETERS else "is no parameter"
            hint = f" Did you mean {near[0]}?" if near and name not in PARAMETERS else ""
            raise UserError(f"search: {printable(name)} {what}.{hint} Needed: {_some_of()}.")
    return {name: RANGES[name] for name in RANGES if name in names}


def _some_of() -> str:
    return f"some of {', '.join(RANGES)}"


def check_search(config: Config, fixed: Mapping[str, object]) -> Iterator[Config]:
    """Refuse what `tune` cannot do; yields parameters of the most extreme trials, to be checked.

    Args:
        config: the parameters of tune.
        fixed: those that the user has given.

    Raises:
        UserError: if a parameter is fixed and searched, or trials would be in one another's way.
    """
    ranges = search_ranges(config.search)
    for name in ranges:
        if name in fixed:
            raise UserError(
                f"search: {name} is also fixed (-P {name}={fixed[name]}). Needed: one of both."
            )
    if config.resume != NONE:
        raise UserError(f"resume: {config.resume}, but every trial starts anew. Needed: none.")
    if config.nnodes > 1:
        raise UserError(
            f"nnodes: {config.nnodes}, but a trial trains on one machine. Needed: 1; several "
            "machines share the trials of a study by its storage."
        )
    for name, tried in ranges.items():
        for value in tried.ends:
            yield config.replace(**{name: value})
