"""Records out of text: JSON, JSONL, tables and paragraphs."""

import csv
import io
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tuner.errors import UserError, shorten
from tuner.reading_files import BLOCK, MAX_COLUMNS, MAX_DEPTH, MAX_LINE_BYTES, MAX_OBJECT_BYTES, SPLITS, add_note

_BROKEN_FROM, _BROKEN_SHARE = 1_000, 0.01  # a file is refused where more than this share of its lines is broken
_SPACE = re.compile(r"[ \t\n\r]*")
_CUT = re.compile(r"\s*|-|\.|[eE][-+]?|\\?(u[0-9a-fA-F]{0,4})?")  # what json names where a number or an escape lacks its end


@dataclass(frozen=True)
class Broken:
    """A line that could not be read, among many that could.

    Args:
        place: where it stands, like "line 1,204".
        why: follows "Row N", like "is broken: Expecting ',' delimiter (line 1,204 begins '{"a"').".
    """

    place: str
    why: str


# Lines ------------------------------------------------------------------------------------------------------------


def _lines(blocks: Iterable[str], shown: str, number: int = 1) -> Iterator[tuple[str, bool]]:
    """Each line without its line feed, and whether it had one."""
    # Not str.splitlines: it also cuts at U+2028 and others that may stand inside a JSON string.
    rest = ""
    for block in blocks:
        lines = (rest + block).split("\n")
        rest = lines.pop()
        for line in lines:
            if len(line) > MAX_LINE_BYTES:
                raise UserError(f"{shown}, line {number:,} has {len(line):,} characters; the most is {MAX_LINE_BYTES:,}. Cut it into rows.")
            yield line, True
            number += 1
        if len(rest) > MAX_LINE_BYTES:
            raise UserError(f"{shown}, line {number:,} has more than {MAX_LINE_BYTES:,} characters, the most. Cut it into rows.")
    if rest:
        yield rest, False


def read_prose(blocks: Iterable[str], shown: str, notes: list[str]) -> Iterator[dict]:
    """A row a paragraph, or a line where no blank lines part paragraphs."""
    lines = ((number, line) for number, (line, _) in enumerate(_lines(blocks, shown), 1))
    lines = itertools.dropwhile(lambda item: not item[1].strip(), lines)
    # Whether blank lines part paragraphs is decided by the first megabyte: all of the file cannot be waited for.
    head, length = [], 0
    for item in lines:
        head.append(item)
        length += len(item[1]) + 1
        if length > BLOCK:
            break
    filled = [bool(line.strip()) for _, line in head]
    in_paragraphs = any(not a and b for a, b in itertools.pairwise(filled))
    add_note(notes, "Each paragraph is a row." if in_paragraphs else "Each line is a row.")
    block, length = [], 0
    for number, line in itertools.chain(head, lines):
        if not in_paragraphs:
            if line.strip():
                yield {"text": line}
            continue
        if line.strip():
            block.append(line)
            length += len(line) + 1
            if length > MAX_LINE_BYTES:
                raise UserError(f"{shown} has a paragraph of more than {MAX_LINE_BYTES:,} characters before line {number:,}. Part it by blank lines.")
        elif block:
            yield {"text": "\n".join(block).strip()}
            block, length = [], 0
    if block:
        yield {"text": "\n".join(block).strip()}


# JSON -------------------------------------------------------------------------------------------------------------


class _Json:
    """A JSON parser that keeps large whole numbers exact and collects the faults of what it parses.

    Faults are collected, not raised, so that the end of a list's faulty element is known and the next can be read.
    """

    def __init__(self):
        self.faults: list[str] = []
        self.decoder = json.JSONDecoder(object_pairs_hook=self._object, parse_constant=self._constant, parse_float=self._float)

    def _object(self, pairs: list[tuple[str, object]]) -> dict:
        made = dict(pairs)
        if len(made) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))
            self.faults.append(f"the key {shorten(twice, 30)!r} stands twice in one object")
        return made

    def _constant(self, name: str) -> None:
        self.faults.append(f"{name} is not a JSON value")

    def _float(self, text: str) -> float:
        number = float(text)
        if not math.isfinite(number):
            self.faults.append(f"{shorten(text, 20)} is too large a number")
        return number

    def parse(self, text: str, start: int = 0) -> tuple[object, int]:
        """The value that begins at start, and where it ends."""
        self.faults.clear()
        return self.decoder.raw_decode(text, start)

    def parse_all(self, text: str) -> object:
        self.faults.clear()
        return self.decoder.decode(text)

    def judge(self, value: object, text: str, start: int = 0, end: int | None = None) -> tuple[dict, str]:
        """The value as a record, or what is wrong with it, as it follows a row's name; `text` is what it was parsed from."""
        end = len(text) if end is None else end
        if self.faults:
            return {}, f"is broken: {self.faults[0]}"
        if text.count("[", start, end) + text.count("{", start, end) > MAX_DEPTH and _depth_exceeds(value):
            return {}, "is nested too deep"
        # Only an escape can bring half a surrogate pair: what was decoded from bytes holds none.
        if text.find("\\ud", start, end) >= 0 or text.find("\\uD", start, end) >= 0:
            try:
                json.dumps(value, ensure_ascii=False).encode()
            except UnicodeEncodeError as error:
                return {}, f"is broken: it holds half a character (\\u{ord(error.object[error.start]):04x})"
        if isinstance(value, str):
            return {"text": value}, ""
        if not isinstance(value, dict):
            return {}, f"is {shorten(json.dumps(value), 40)}; each row must be an object with named fields"
        if len(value) > MAX_COLUMNS:
            return {}, f"has {len(value):,} columns; the most is {MAX_COLUMNS:,}"
        return value, ""


def _depth_exceeds(value: object) -> bool:
    level, depth = [value], 0
    while level := [inner for item in level for inner in (item.values() if isinstance(item, dict) else item if isinstance(item, list) else ())]:
        depth += 1
        if depth > MAX_DEPTH:
            return True
    return False


def _reason(error: ValueError, text: str = "") -> str:
    """What json says is wrong, with the slip that is usually behind it."""
    if not isinstance(error, json.JSONDecodeError):
        return "a number has more than 4,300 digits" if str(error).startswith("Exceeds the limit") else str(error)
    text = text or error.doc
    at, before = text[error.pos : error.pos + 5], text[max(0, error.pos - 50) : error.pos].rstrip()
    hints = (
        (at[:1] in ("}", "]") and before.endswith(","), "there is a comma too many before it"),
        (at[:1] == "'", "JSON wants double quotes"),
        (at[:1] in ("/", "#"), "JSON has no comments"),
        (at[:4] in ("None", "True") or at == "False", "JSON writes null, true and false"),
    )
    return next((f"{error.msg} ({hint})" for seen, hint in hints if seen), error.msg)


def _is_cut(error: json.JSONDecodeError, text: str) -> bool:
    """Whether the text may only lack its end."""
    rest = text[error.pos : error.pos + 12]
    if error.msg.startswith("Unterminated") or any(word.startswith(rest) for word in ("true", "false", "null", "NaN", "-Infinity", "Infinity")):
        return True
    return len(rest) < 12 and bool(_CUT.fullmatch(rest))


class _Tally:
    """Broken lines among those seen: few are left out and told, many are a broken file."""

    def __init__(self, shown: str, several: bool, what: str):
        self.shown, self.several, self.what = shown, several, what
        self.seen = self.broken = 0
        self.first = ""

    def leave_out(self, number: int, fault: str, text: str, by_cut: bool = False) -> Broken:
        """The line as one that is left out.

        Raises:
            UserError: too many are broken by now.
        """
        begins = f"begins {shorten(text, 40)!r}" if text else ""
        place = f"{self.what} {number:,}"
        if not by_cut:
            self.broken += 1
            if not self.first:
                # "a.jsonl is broken at line 2: ..." but "a.jsonl, line 2 is [1, 2]; ..."
                is_broken = fault.startswith("is broken: ")
                self.first = f"{self.shown} is broken at {place}: {fault[11:]}." if is_broken else f"{self.shown}, {place} {fault}."
                self.first += (f" The {self.what} {begins}." if begins and is_broken else "") + " Fix or delete it."
            if self.seen >= _BROKEN_FROM:
                self.check()
        place += f" of {self.shown}" if self.several else ""
        return Broken(place, f"{fault} ({place}{f' {begins}' if begins else ''}).")

    def check(self) -> None:
        if self.broken > _BROKEN_SHARE * self.seen:
            many = f" {self.broken:,} of {self.seen:,} {self.what}s are like that." if self.broken > 1 else ""
            raise UserError(self.first + many)


def read_jsonl(text: Iterable[str], shown: str, notes: list[str], several: bool = False, first_line: int = 1) -> Iterator[dict | Broken]:
    """One JSON value a line."""
    blocks = iter(text)
    first = next(blocks, "")
    if _is_one_list(first):
        add_note(notes, "It is one JSON list and was read as such.")
        yield from read_json(itertools.chain([first], blocks), shown, notes, several)
        return
    parser, tally, rows = _Json(), _Tally(shown, several, "line"), 0
    for number, (line, ended) in enumerate(_lines(itertools.chain([first], blocks), shown, first_line), first_line):
        if not line or line.isspace():
            continue
        tally.seen += 1
        try:
            value = parser.parse_all(line)
        except RecursionError:
            fault = "is nested too deep"
        except ValueError as error:
            fault = f"is broken: {_reason(error, line)}"
            if not ended and rows and isinstance(error, json.JSONDecodeError) and (_is_cut(error, line) or getattr(text, "cut", False)):
                yield tally.leave_out(number, "is cut off: the file ends in the middle of it", line, by_cut=True)
                continue
        else:
            record, fault = parser.judge(value, line)
            if not fault:
                rows += 1
                yield record
                continue
        yield tally.leave_out(number, fault, line)
    tally.check()


def _is_one_list(head: str) -> bool:
    """Whether what is called JSONL begins a list of objects that ends on no first line, or is nothing but that line."""
    head = head.lstrip()
    if not re.match(r"\[\s*[{\]]", head):
        return False
    line, _, rest = head.partition("\n")
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return True
    return not rest.strip()


class _Window:
    """The part of a JSON text that is looked at; what was read is dropped when more is taken in."""

    def __init__(self, blocks: Iterable[str]):
        self.blocks = iter(blocks)
        self.text, self.at, self.line, self.column = "", 0, 1, 1

    def place(self, at: int) -> tuple[int, int]:
        """Line and column in the file, from 1, of a position in the window."""
        if feeds := self.text.count("\n", 0, at):
            return self.line + feeds, at - self.text.rfind("\n", 0, at)
        return self.line, self.column + at

    def grow(self) -> bool:
        """Take in as much again as is unread, one block at least; False at the end of the file."""
        self.line, self.column = self.place(self.at)
        parts, wanted = [self.text[self.at :]], len(self.text) - self.at
        self.at = 0
        for block in self.blocks:
            parts.append(block)
            wanted -= len(block)
            if wanted <= 0:
                break
        self.text = "".join(parts)
        return len(parts) > 1

    def skip(self) -> str:
        """The next mark that is no white space; "" at the end of the file."""
        while True:
            self.at = _SPACE.match(self.text, self.at).end()
            if self.at < len(self.text) or not self.grow():
                return self.text[self.at : self.at + 1]


def read_json(text: Iterable[str], shown: str, notes: list[str], several: bool = False) -> Iterator[dict | Broken]:
    """The elements of a list, the rows in an object, or one object a line under a wrong name."""
    window, parser = _Window(text), _Json()
    mark = window.skip()
    if mark == "[":
        tally = _Tally(shown, several, "row")
        for number, value, start, end in _elements(window, parser, shown):
            tally.seen += 1
            record, fault = parser.judge(value, window.text, start, end)
            yield tally.leave_out(number, fault, "") if fault else record
        tally.check()
    elif mark == "{" and _is_jsonl(window, parser):
        add_note(notes, "It is JSONL, one object a line, and was read as such.")
        rest = itertools.chain([window.text[window.at :]], window.blocks)
        yield from read_jsonl(rest, shown, notes, several, first_line=window.place(window.at)[0])
    else:
        yield from _read_whole(window, parser, shown, notes)


def _broken_json(window: _Window, at: int, reason: str, shown: str) -> UserError:
    line, column = window.place(at)
    return UserError(f"{shown} is broken at line {line:,}, column {column:,}: {reason}. Fix it there.")


def _elements(window: _Window, parser: _Json, shown: str) -> Iterator[tuple[int, object, int, int]]:
    """Each element of the list that begins in the window: its number, its value, and where it stands in the window."""
    window.at += 1
    number, mark = 0, window.skip()
    if mark == "]":
        window.at += 1
    while mark != "]":
        number += 1
        while True:
            try:
                value, end = parser.parse(window.text, window.at)
                # A number that ends where the window does may go on behind it.
                if end < len(window.text) or not window.grow():
                    break
            except RecursionError:
                raise UserError(f"{shown}, row {number:,} is nested too deep. Flatten it.") from None
            except json.JSONDecodeError as error:
                if _is_cut(error, window.text):
                    if len(window.text) - window.at <= MAX_LINE_BYTES:
                        if window.grow():
                            continue
                        line, column = window.place(len(window.text))
                        raise UserError(
                            f"{shown} is cut off: it ends at line {line:,}, column {column:,} within row {number:,}. Bring it whole."
                        ) from None
                elif error.pos - window.at <= MAX_LINE_BYTES:
                    raise _broken_json(window, error.pos, _reason(error, window.text), shown) from None
                end = len(window.text)
                break
            except ValueError as error:
                raise _broken_json(window, window.at, _reason(error), shown) from None
        if end - window.at > MAX_LINE_BYTES:
            line, _ = window.place(window.at)
            raise UserError(
                f"{shown}, row {number:,} has more than {MAX_LINE_BYTES:,} characters, the most; it begins at line {line:,}. "
                "See whether a quote or a bracket is missing there."
            )
        start, window.at = window.at, end
        yield number, value, start, end
        mark = window.skip()
        if not mark:
            line, column = window.place(window.at)
            raise UserError(f"{shown} is cut off: it ends at line {line:,}, column {column:,} behind row {number:,}. Bring it whole.")
        if mark not in ",]":
            raise _broken_json(window, window.at, "Expecting ',' delimiter", shown)
        window.at += 1
        if mark == ",":
            window.skip()
    if window.skip():
        raise _broken_json(window, window.at, "Extra data", shown)


def _is_jsonl(window: _Window, parser: _Json) -> bool:
    """Whether the window's first line is an object by itself and another one begins behind it."""
    while (end := window.text.find("\n", window.at)) < 0:
        if len(window.text) - window.at > MAX_LINE_BYTES or not window.grow():
            return False
    try:
        parser.parse_all(window.text[window.at : end])
    except (ValueError, RecursionError):
        return False
    while not (behind := window.text[end:].lstrip()):
        if len(window.text) - window.at > MAX_LINE_BYTES or not window.grow():
            return False
        end = window.text.find("\n")
    return behind[0] == "{"


def _read_whole(window: _Window, parser: _Json, shown: str, notes: list[str]) -> Iterator[dict]:
    """The rows of a JSON text that is one object."""
    parts, length = [window.text], len(window.text)
    for block in window.blocks:
        parts.append(block)
        length += len(block)
        if length > MAX_OBJECT_BYTES:
            break
    if length > MAX_OBJECT_BYTES:
        raise UserError(
            f"{shown} is one JSON object of more than {MAX_OBJECT_BYTES / 2**20:,.0f} MiB. Save its rows as a list or as JSONL."
        )
    text = window.text = "".join(parts)
    try:
        value, end = parser.parse(text, window.at)
        if (behind := _SPACE.match(text, end).end()) < len(text):
            raise json.JSONDecodeError("Extra data", text, behind)
    except RecursionError:
        raise UserError(f"{shown} is nested too deep. Flatten it.") from None
    except json.JSONDecodeError as error:
        if _is_cut(error, text) and text[window.at : window.at + 1] == "{":
            line, column = window.place(len(text))
            raise UserError(f"{shown} is cut off: it ends at line {line:,}, column {column:,} within an object. Bring it whole.") from None
        raise _broken_json(window, error.pos, _reason(error), shown) from None
    except ValueError as error:
        raise UserError(f"{shown} is not valid JSON: {_reason(error)}. Fix or delete it.") from None
    if parser.faults:
        raise UserError(f"{shown} is not valid JSON: {parser.faults[0]}. Fix or delete it.")
    odd = "\\ud" in text.lower()
    for number, item in enumerate(_rows_within(value, shown, notes), 1):
        record, fault = parser.judge(item, "[" * (MAX_DEPTH + 1) + ("\\ud" if odd else ""))
        if fault:
            raise UserError(f"{shown}, row {number:,} {fault}. Fix or delete it.")
        yield record


def _rows_within(value: object, shown: str, notes: list[str]) -> list:
    """The rows that a JSON object holds, or is."""
    if not isinstance(value, dict):
        raise UserError(f"{shown} holds {shorten(json.dumps(value), 40)}; a list of rows is expected. Bring one, or JSONL.")
    lists = {key: item for key, item in value.items() if isinstance(item, list)}
    lengths = {len(item) for item in lists.values()}
    if len(lists) == 1 and _holds_rows(next(iter(lists.values())), alone=len(value) == 1):
        key = next(iter(lists))
        add_note(notes, f"The rows were found under {shorten(key, 30)!r}.")
        return lists[key]
    if len(lists) < 2 or len(lists) < len(value):
        return [value]
    if all(item and _holds_rows(item, alone=False) for item in lists.values()):
        if all(key.lower() in SPLITS for key in lists):
            add_note(notes, f"The rows were found under {', '.join(map(repr, lists))}, which became their split.")
            return [{"split": key, **row} for key, rows in lists.items() for row in rows]
    elif any(_holds_turns(item) for item in lists.values()):
        return [value]
    if len(lengths) == 1:
        add_note(notes, "The file is a table by columns and was turned into rows.")
        return [dict(zip(lists, row)) for row in zip(*lists.values())]
    seen = ", ".join(f"{shorten(key, 30)!r} has {len(item):,}" for key, item in list(lists.items())[:3])
    raise UserError(f"{shown} is a table by columns, and they differ in length: {seen}. Make them equal, or bring a list of rows.")


def _holds_turns(items: list) -> bool:
    """Whether a list holds the turns of one conversation."""
    return bool(items) and isinstance(items[0], dict) and ("role" in items[0] or {"from", "value"} <= items[0].keys())


def _holds_rows(items: list, alone: bool) -> bool:
    """Whether a list inside an object is the dataset's rows, rather than the turns or the tags of a single row."""
    if not all(isinstance(item, dict) for item in items):
        return alone and all(isinstance(item, str) for item in items)
    return not _holds_turns(items)


# Tables -----------------------------------------------------------------------------------------------------------


def head_of(lines: Iterable[str]) -> tuple[list[str], bool]:
    """The first hundred lines that are not blank, or as many as make a megabyte; and whether these are all there are."""
    head, length, filled = [], 0, 0
    for line in lines:
        head.append(line)
        length += len(line)
        filled += not line.isspace()
        if length > BLOCK or filled == 100:
            return head, False
    return head, True


def sniff_delimiter(lines: list[str], whole: bool) -> str:
    """The mark that splits the first lines into the same number of cells, more than one; "" if there is none.

    Args:
        whole: the lines are all there are; else the last row may be cut.
    """
    best, cells = "", 1
    for mark in ",\t;|":
        widths = _widths(lines, mark)
        widths = widths if whole or len(widths) < 3 else widths[:-1]
        if widths and widths[0] > cells and sum(width == widths[0] for width in widths) >= 0.9 * len(widths):
            best, cells = mark, widths[0]
    return best


def _widths(lines: list[str], mark: str) -> list[int]:
    csv.field_size_limit(MAX_LINE_BYTES)
    try:
        return [len(row) for row in csv.reader(lines, delimiter=mark) if row]
    except csv.Error:
        return []


class _Feed:
    """The lines of a table, with their ends; it knows where the row that is being read begins, and where its last quote opens."""

    def __init__(self, blocks: Iterable[str], shown: str):
        self.blocks, self.shown = iter(blocks), shown
        self.number = 0  # of the last line given
        self.forget()

    def forget(self) -> None:
        """A row has ended."""
        self.begin, self.length, self.quote, self.is_open = self.number + 1, 0, 0, False

    def lines(self) -> Iterator[str]:
        rest = ""
        for block in self.blocks:
            lines = io.StringIO(rest + block, newline="").readlines()
            rest = lines.pop() if lines and not lines[-1].endswith(("\n", "\r")) else ""
            yield from lines
            if len(rest) > MAX_LINE_BYTES:
                yield rest  # too long already: `watch` refuses it with its number
                rest = ""
        if rest:
            yield rest

    def watch(self, lines: Iterable[str]) -> Iterator[str]:
        for line in lines:
            self.number += 1
            self.length += len(line)
            if '"' in line and (quotes := line.replace('""', "").count('"')):
                self.quote = self.number
                self.is_open ^= bool(quotes % 2)
            if self.length > MAX_LINE_BYTES:
                raise UserError(
                    f"{self.shown}, the row that begins at line {self.begin:,} has more than {MAX_LINE_BYTES:,} characters, the most. "
                    f"{self.advice()}"
                )
            yield line

    def advice(self) -> str:
        """Where the quote opens that the current row never closes, in a sentence."""
        return f"A quote opens at line {self.quote:,} and never closes. Close it." if self.is_open else "Cut it into rows."


def read_table(blocks: Iterable[str], shown: str, delimiter: str, notes: list[str]) -> Iterator[dict]:
    """A record a row below the header; `delimiter` is what the file's ending says, "" where it says nothing."""
    feed = _Feed(blocks, shown)
    lines = feed.lines()
    for line in lines:
        if not line.isspace():
            lines = itertools.chain([line], lines)
            break
        feed.number += 1
    feed.forget()
    head, whole = head_of(lines)
    delimiter = _choose_delimiter(head, whole, delimiter, notes)
    csv.field_size_limit(MAX_LINE_BYTES)  # it is the process's, so it is set wherever it counts
    reader = csv.reader(feed.watch(itertools.chain(head, lines)), delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next((row for row in reader if any(cell.strip() for cell in row)), [])]
        unnamed = _check_header(header, shown, notes)
        feed.forget()
        for row in reader:
            if not any(row) or not any(cell.strip() for cell in row):
                feed.forget()
                continue
            if len(row) != len(header):
                raise UserError(
                    f"{shown}, line {feed.number:,} has {len(row)} cells and the header has {len(header)}. "
                    "Put quotes round cells that hold the separator."
                )
            feed.forget()
            # Cells stay text: 007 is not 7 and NA is not nothing.
            record = dict(zip(header, row))
            if unnamed:
                if any(row[place].strip() for place in unnamed):
                    raise UserError(f"{shown}, line {feed.number:,} has text in a column without a name. Give each column its own name.")
                del record[""]
            yield record
    except csv.Error as error:
        if "end of data" in str(error):
            raise UserError(f"{shown} is broken near line {feed.number:,}: {error}. {feed.advice()}") from None
        begins = f" in the row that begins at line {feed.begin:,}" if feed.begin < feed.number else ""
        raise UserError(f"{shown} is broken near line {feed.number:,}: {error}{begins}. Check the quotes there.") from None


def _choose_delimiter(head: list[str], whole: bool, delimiter: str, notes: list[str]) -> str:
    """What parts the cells: what the ending says if the first line holds it, else what the first lines show."""
    if delimiter and (not head or delimiter in head[0]):
        return delimiter
    found = sniff_delimiter(head, whole)
    if not found:
        # Rows of different lengths hide the mark; a header and a row that hold one that is no comma still show it.
        found = next((mark for mark in "\t;|" if len(head) > 1 and "," not in head[0] and mark in head[0] and mark in head[1]), ",")
    if found != (delimiter or ","):
        add_note(notes, f"Cells are separated by {'a tab' if found == chr(9) else repr(found)}.")
    return found


def _check_header(header: list[str], shown: str, notes: list[str]) -> list[int]:
    """Places of the columns without a name, where there is more than one of them: they have to be empty.

    Raises:
        UserError: too many columns, or two of one name.
    """
    if len(header) > MAX_COLUMNS:
        raise UserError(f"{shown} has {len(header):,} columns; the most is {MAX_COLUMNS:,}. Keep those that matter.")
    if twice := sorted({name for name in header if name and header.count(name) > 1}):
        raise UserError(f"{shown} has the column {shorten(twice[0], 30)!r} twice. Give each column its own name.")
    if any(len(name) > 60 or name.endswith((".", "?", "!")) or re.fullmatch(r"[-+]?[\d.,]+", name) for name in header):
        add_note(notes, f"The first line of {shown} was taken for the columns' names. If it is a row, put a line of names above it.")
    unnamed = [place for place, name in enumerate(header) if not name]
    return unnamed if len(unnamed) > 1 else []
