"""All bugs by name. A new one is a function and a line in the list of its file."""
from difflib import get_close_matches

from minires.errors import UserError
from minires.study.bugs import elementwise, paths, statistics, windows

BUGS = {bug.name: bug for part in (windows, statistics, elementwise, paths) for bug in part.BUGS}
FAMILIES = tuple(dict.fromkeys(name.split("-")[0] for name in BUGS))


def choose(names=()):
    """The Bugs of these names or families ("batchnorm" for all whose name begins so), in the catalogue's order; all of
    them when there are none. UserError for a name that is neither."""
    for name in names:
        if name not in BUGS and name not in FAMILIES:
            close = get_close_matches(name, [*BUGS, *FAMILIES], 3)
            families = f"choose a family, {', '.join(FAMILIES)}, or a bug of one"
            hint = f"did you mean {' or '.join(close)}?" if close else families
            raise UserError(f"unknown bug {name!r}: {hint}")
    return [bug for bug in BUGS.values() if not names or bug.name in names or bug.name.split("-")[0] in names]
