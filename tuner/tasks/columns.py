"""Which columns records have, and whether a mapping fits them: what every task asks of a table."""

from collections.abc import Callable

from tuner.errors import UserError, shorten

# A format is recognised, and a mapping tried, by so many records.
LOOKED_AT = 200


def columns_of(records) -> list[str]:
    """The columns of the first records, in the order they appear."""
    seen: dict[str, None] = {}
    for record in records[:LOOKED_AT]:
        seen.update(dict.fromkeys(record))
    return list(seen)


def problems_of(formats: dict, mapping, records, parts: Callable[[str, str, list[str]], list[str]] = lambda role, source, columns: [source]) -> list[str]:
    """Every role without a column, every role that has no place, and every column that is not there, in sentences.

    Args:
        formats: format -> (its name in words, the roles it needs, the roles it may have).
        parts: the columns that a role's source is made of.

    Raises:
        UserError: there is no such format.
    """
    if mapping.format not in formats:
        raise UserError(f"There is no format {mapping.format!r}. Choose one of {', '.join(formats)}.")
    words, needed, optional = formats[mapping.format]
    columns = columns_of(records)
    problems = [f"{words} needs a column for {role}." for role in needed if not mapping.columns.get(role)]
    problems += [f"{words} has no place for {role}." for role in mapping.columns if role not in needed and role not in optional]
    return problems + [
        f"The column {shorten(column, 40)!r} is not there. There are: {shorten(', '.join(columns), 120)}."
        for role, source in mapping.columns.items() for column in parts(role, source, columns) if column not in columns
    ]
