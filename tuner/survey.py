"""All rows of a run encoded as the trainer will meet them, and what that shows."""

from collections import Counter
from dataclasses import dataclass, field

from tuner import tasks
from tuner.encode import Encoded
from tuner.errors import UserError


@dataclass
class Survey:
    """Every row encoded, and what that shows.

    Args:
        encoded: what will be learned from, in order; rows that teach nothing are not among it.
        owners: for each of `encoded`, the place of its row among all rows.
        lengths: tokens in each sequence before any cut.
        learned: learned tokens in `encoded`.
        cut: numbers of rows that lose tokens at their end.
        silent: numbers of rows with no learned token left, so that they teach nothing.
        refused: (row number, why) for rows that the model's template refuses.
        how: how many rows had their learned part found in which way.
    """

    encoded: list[Encoded] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    learned: int = 0
    cut: list[int] = field(default_factory=list)
    silent: list[int] = field(default_factory=list)
    refused: list[tuple[int, str]] = field(default_factory=list)
    how: Counter = field(default_factory=Counter)

    @property
    def tokens(self) -> int:
        return sum(len(row.ids) for row in self.encoded)


def of(rows: list[dict], tokenizer, recipe) -> Survey:
    """Encode all rows as the trainer will, and count what happens to them."""
    found = Survey()
    encode_row = tasks.get(recipe.task).encode_row
    for place, row in enumerate(rows):
        try:
            sequences = encode_row(row, tokenizer, recipe)
        except UserError as error:
            found.refused.append((row["n"], str(error)))
            continue
        taught = False
        for sequence in sequences:
            found.how[sequence.how] += 1
            found.lengths.append(len(sequence.offsets))
            if sequence.learned:
                taught = True
                found.learned += sequence.learned
                found.encoded.append(sequence.bare())
                found.owners.append(place)
        if any(sequence.cut for sequence in sequences):
            found.cut.append(row["n"])
        if not taught:
            found.silent.append(row["n"])
    return found


def require_something(found: Survey, rows: list[dict], recipe, what: str) -> None:
    """Raise a UserError where nothing at all can be learned from."""
    if found.encoded:
        return
    if found.refused:
        raise UserError(f"None of the {len(rows):,} {what} rows fits the base model. Row {found.refused[0][0]}: {found.refused[0][1]}")
    raise UserError(
        f"None of the {len(rows):,} {what} rows {tasks.get(recipe.task).NOTHING_LEARNED.format(recipe.max_tokens)}, so there "
        f"is nothing to learn. Raise max_tokens (the longest row has {max(found.lengths):,}) or shorten the prompts."
    )
