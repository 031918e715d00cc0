"""Texts that something broke on the way, by wrong encodings or by markup left over: found and repaired."""

import html
import re
from collections.abc import Iterator
from functools import cache

KINDS = ("mojibake", "replacement", "nul", "utf16", "html", "markdown")

# Letters with a NUL at every other place: UTF-16 that was read one byte at a time.
HALVES = re.compile(r"(?:[^\0]\0){4}|(?:\0[^\0]){4}")
MARKS = ("ÿþ", "þÿ", "\ufffd\ufffd")  # the byte order mark, read as Latin-1 and as UTF-8

# Tags that stay behind when a page is turned into text. Left out are <s>, which begins a text for many models, and names that
# prompts use for their own parts or people for a blank to fill in (<title>, <input>, <summary>): those count with attributes only.
_TAGS = (
    "a|b|big|blockquote|br|center|dd|del|div|dl|dt|em|figcaption|figure|font|footer|h[1-6]|hr|i|iframe|img|ins|li|nav|noscript|ol|p|"
    "pre|script|small|span|strike|strong|style|sub|sup|table|tbody|td|tfoot|th|thead|tr|tt|u|ul|wbr"
)
_NAMED = (
    "address|article|aside|audio|body|button|caption|cite|code|col|details|embed|fieldset|form|head|header|html|input|kbd|label|legend|link|"
    "main|meta|object|optgroup|option|param|picture|q|section|select|source|summary|svg|template|textarea|time|title|track|var|video"
)
_VALUE = r"""[ \t\r\n]{1,20}+[A-Za-z_:@][\w:.-]{0,60}+[ ]?=[ ]?(?:"[^"<]{0,2000}+"|'[^'<]{0,2000}+'|[^\s"'<>=]{1,500}+)"""
_FLAG = r"[ \t\r\n]{1,20}+(?:allowfullscreen|async|autoplay|checked|controls|defer|disabled|hidden|loop|multiple|muted|noshade|nowrap|open|readonly|required|selected)\b"
_ACCENTED = "[AEIOUYaeiouyNnCc](?:acute|grave|circ|uml|tilde|ring|cedil)"
MARKUP = re.compile(
    rf"<(?=/?[a-z]|!)(?:/(?P<closed>{_TAGS}|{_NAMED})\s{{0,5}}>"
    rf"|(?P<opened>{_TAGS})(?:{_VALUE}|{_FLAG}){{0,30}}\s{{0,20}}+/?>"
    rf"|(?P<named>{_NAMED})(?={_VALUE})(?:{_VALUE}|{_FLAG}){{1,30}}\s{{0,20}}+/?>"
    r"|!DOCTYPE\s[^<>]{0,300}>|!--(?:(?!-->)[^<]){0,2000}-->)"
    rf"|&(?P<entity>\#\d{{2,7}}|\#x[0-9a-f]{{2,6}}|nbsp|amp|lt|gt|quot|apos|copy|reg|trade|hellip|[mn]dash|[lrsb][sd]quo|bdquo|[lr]aquo|bull|middot|"
    rf"euro|pound|yen|cent|sect|para|deg|plusmn|times|divide|micro|frac(?:12|14|34)|sup[123]|ord[fm]|szlig|[ao]elig|eth|thorn|oslash|iexcl|iquest|shy|"
    rf"(?:en|em|thin)sp|zwn?j|lrm|rlm|[lrud]arr|infin|asymp|ne|le|ge|{_ACCENTED});",
    re.IGNORECASE,
)
LINES = re.compile(r"(?:br|hr|p|div|h[1-6]|ul|ol|li|dl|dt|dd|table|tr|blockquote|pre|figure|figcaption|footer|nav|article|aside|section|header|form)$", re.IGNORECASE)
# Who names HTML writes about it, or was asked for it: there tags and entities are what is to be learned.
SUBJECT = re.compile(r"(?<![\w<./-])(?:[dx]?html|xml|css|jsx|markup)(?![\w-])", re.IGNORECASE)
BLANKS = re.compile(r"(?<![ \t])[ \t]*+\n(?:[ \t]*+\n){2,}")

FENCE = re.compile(r"^([ \t]*+)(`{3,}+)([^\n`]*+)$", re.MULTILINE)
INLINE = re.compile(r"(?<!`)(`{1,2})(?!`)[^`\n]{1,1000}+\1(?!`)")
# Escapes that converters write before signs that need none. \. and \- are left alone: patterns in prose look the same.
ESCAPE = re.compile(r"\\(?<!¯\\)(?:\*(?![.\w/])|\*(?=\w)|_(?!\()|\#)")
COMMAND = re.compile(r"\\[A-Za-z]|[A-Za-z]:\\|\\\\")  # TeX, patterns, paths and strings: there a backslash has its own meaning
FORMULA = re.compile(r"\\[(\[]|\$\$|(?<![\w$])\$[^$\n]{1,200}\\[^$\n]{1,200}\$")
IMAGE = re.compile(r'!\[(?<!\w!\[)([^\[\]\n]{0,300}+)\]\((?:[^()\s]{1,2000}+)(?:\([^()\s]{0,200}+\)[^()\s]{0,200}+)?(?:[ ]"[^"\n]{0,300}+")?\)')
@cache
def _suspects() -> re.Pattern:
    """The letters of which every rule of ftfy 6.3 needs one, where it may need them; its own search takes fifteen times as long."""
    from ftfy.badness import MOJIBAKE_CATEGORIES as kinds

    plain = ("common", "lower_accented", "lower_common", "upper_common", "kaomoji")
    letters = "".join(letters for kind, letters in kinds.items() if kind not in plain) + "ŒœЂ"
    return re.compile(f"[{letters}](?:(?<=[{kinds['c1']}ÂÃŒœЂ])|(?=[^\0-\x7f])|(?<=[^\0-\x7f].))", re.DOTALL)


def _is_bad(text: str) -> bool:
    """What ftfy.is_bad says, asked only around the letters that matter: its longest rule is five letters."""
    if text.isascii():
        return False
    from ftfy.badness import BADNESS_RE  # 60 ms: only texts with letters beyond ASCII need it

    for tried, match in enumerate(_suspects().finditer(text)):
        if tried > 20 + len(text) / 100:  # so many that one search of the whole is quicker
            return BADNESS_RE.search(text, match.start() - 5) is not None
        if BADNESS_RE.search(text, max(0, match.start() - 5), match.end() + 5):
            return True
    return False


def _mended(text: str) -> str:
    """The text with UTF-8 put together again, line by line, because a good line does not make its neighbour good."""
    if not _is_bad(text):
        return text
    from ftfy import fix_encoding

    return "\n".join(fix_encoding(line) if _is_bad(line) else line for line in text.split("\n"))


def _is_utf16(text: str) -> bool:
    return "\0" in text and (text.startswith(MARKS) or HALVES.search(text) is not None)


def _code(text: str) -> list[tuple[int, int]]:
    """Where the text is code: (start, end) of fenced blocks and of `code` in a line, in order."""
    spans, opened = _fences(text)
    if opened:
        spans.append((opened.start(), len(text)))
    if "`" not in text:
        return spans
    inline, at = [], 0
    for start, end in [*spans, (len(text), len(text))]:
        inline += [match.span() for match in INLINE.finditer(text, at, start)]
        at = end
    return sorted(spans + inline)


def _fences(text: str) -> tuple[list[tuple[int, int]], re.Match | None]:
    """The closed fenced blocks, and the fence that nothing closes: as in CommonMark 0.31, section 4.5."""
    spans, opened = [], None
    if "```" in text:
        for fence in FENCE.finditer(text):
            if opened is None:
                opened = fence
            elif len(fence[2]) >= len(opened[2]) and not fence[3].strip():
                spans.append((opened.start(), fence.end()))
                opened = None
    return spans, opened


def _outside_code(pattern: re.Pattern, text: str) -> Iterator[re.Match]:
    """The pattern's matches that do not begin within code."""
    spans = None
    at = 0
    for match in pattern.finditer(text):
        if spans is None:
            spans = _code(text)  # late: most texts have no match at all
        while at < len(spans) and spans[at][1] <= match.start():
            at += 1
        if at == len(spans) or match.start() < spans[at][0]:
            yield match


def _markup(text: str) -> Iterator[re.Match]:
    """Tags and entities of HTML, outside code."""
    if "<" not in text and "&" not in text:
        return
    ends = None
    for match in _outside_code(MARKUP, text):
        if ends is None:
            if SUBJECT.search(text):
                return
            ends = {name for name in "abipqu" if f"</{name}>" in text}
        if match.end() - match.start() == 3 and match["opened"] not in ends:
            # List<A> is a type, and one letter may be a blank to fill in; a pair of tags is markup, and so is <p> by itself
            if match["opened"] != "p" or text[max(0, match.start() - 1)].isalnum():
                continue
        yield match


def _escapes(text: str) -> Iterator[re.Match]:
    """Backslashes before signs that need none, outside code, in texts where a backslash means nothing else."""
    if "\\" not in text or not ESCAPE.search(text):
        return
    if not any(True for _ in _outside_code(COMMAND, text)) and not any(True for _ in _outside_code(FORMULA, text)):
        yield from _outside_code(ESCAPE, text)


def _images(text: str) -> Iterator[re.Match]:
    if "![" in text:
        yield from _outside_code(IMAGE, text)


def _is_markdown_residue(text: str) -> bool:
    return bool(_fences(text)[1]) or any(True for _ in _images(text)) or any(True for _ in _escapes(text))


def find(text: str) -> frozenset[str]:
    """The kinds of damage that the text shows."""
    found = []
    if not text.isascii():
        if "\ufffd" in text:
            found.append("replacement")
        if _mended(text) != text:
            found.append("mojibake")
    if "\0" in text:
        found.append("utf16" if _is_utf16(text) else "nul")
    if any(True for _ in _markup(text)):
        found.append("html")
    if _is_markdown_residue(text):
        found.append("markdown")
    return frozenset(found)


def repair(text: str, kind: str) -> str:
    """The text without that kind of damage; what cannot be put right is taken out, and all else stays as it is."""
    return REPAIRS[kind](text)


def _without_halves(text: str) -> str:
    if not _is_utf16(text):
        return text
    for encoding, mark in (("utf-16-le", "ÿþ"), ("utf-16-be", "þÿ")):
        try:
            whole = text.removeprefix(mark).encode("latin-1").decode(encoding)
        except UnicodeError:  # not bytes, or an odd number of them
            continue
        if whole.isprintable() or all(letter.isprintable() or letter in "\t\r\n" for letter in whole):
            if sum(ord(letter) < 0x250 for letter in whole) > len(whole) / 2:  # not Latin letters two by two, read as Chinese
                return whole
    for mark in MARKS:
        text = text.removeprefix(mark)
    return text.replace("\0", "")


def _without_markup(text: str) -> str:
    before = None
    while before != text:  # again, because &amp;lt; holds &lt;, and &lt;b&gt; a tag; each round makes the text shorter
        before = text
        parts, at = [], 0
        lowered = None
        for match in _markup(text):
            if match.start() < at:
                continue  # within a script that is gone
            parts.append(text[at:match.start()])
            at = match.end()
            name = (match["opened"] or match["closed"] or match["named"] or "").lower()
            if match["entity"]:
                parts.append(_character(match[0]))
            elif name in ("script", "style") and not match["closed"]:
                lowered = lowered if lowered is not None else text.lower()
                end = lowered.find(f"</{name}", at) if len(lowered) == len(text) else -1
                at = text.find(">", end) + 1 if end >= 0 and text.find(">", end) >= 0 else at
            elif name == "li" and match["opened"]:
                parts.append("\n- ")
            elif LINES.match(name):
                parts.append("\n")
            elif name in ("td", "th") and match["closed"]:
                parts.append(" ")
        if at:
            text = "".join(parts) + text[at:]
    return text


def _character(entity: str) -> str:
    """The character that an entity stands for, a plain space for the one that does not break."""
    character = html.unescape(entity)
    if character == entity:
        character = html.unescape(entity.lower())  # &NBSP; and the like: known in small letters only
    return {"\xa0": " ", "\0": "", entity: ""}.get(character, character)


def _tidied(text: str) -> str:
    """The text without markup, its runs of blank lines cut to one outside code, its ends as they were."""
    bare = _without_markup(text)
    if bare == text:
        return text
    parts, at = [], 0
    for match in _outside_code(BLANKS, bare):
        parts += (bare[at:match.start()], "\n\n")
        at = match.end()
    bare = "".join(parts) + bare[at:]
    if not text[:1].isspace():
        bare = bare.lstrip("\n ")
    if not text[-1:].isspace():
        bare = bare.rstrip("\n ")
    return bare


def _without_residue(text: str) -> str:
    before = None
    while before != text:
        before = text
        for look, put in ((_images, 1), (_escapes, None)):
            parts, at = [], 0
            for match in look(text):
                parts += (text[at:match.start()], match[put] if put else match[0][1:])
                at = match.end()
            text = "".join(parts) + text[at:]
        opened = _fences(text)[1]
        if opened:
            text += ("" if text.endswith("\n") else "\n") + opened[1] + opened[2]
    return text


REPAIRS = {
    "mojibake": _mended,
    "replacement": lambda text: text.replace("\ufffd", ""),
    "nul": lambda text: text if _is_utf16(text) else text.replace("\0", ""),
    "utf16": _without_halves,
    "html": _tidied,
    "markdown": _without_residue,
}
