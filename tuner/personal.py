"""Personal data and secrets in texts: found, counted, masked, and shown without giving them away."""

import re

KINDS = ("email", "phone", "card", "key", "private key")
NOTHING = (0,) * len(KINDS)
MASKS = {kind: f"[{kind.upper()}]" for kind in KINDS}
WALL = "\0"  # stands for what is found already: no letter, no digit, no separator, so that nothing matches across it
NOT_DIGITS = bytes(set(range(128)) - set(b"0123456789"))

# Every pattern begins with a literal or a set, because re then skips to it quickly, and looks back from there.
# Quantifiers are bounded, and inner ones possessive (+ after them): no text makes them backtrack far.

# An address: a sane part of RFC 5321, with letters of European alphabets before the @ and any letters after it.
# Left out: @user@server of the fediverse, icon@2x.png, package@1.2.3, x@y.method( of numpy, git@host: of a remote.
_NAME = "A-Za-z0-9_\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0370-\u03ff\u0400-\u04ff"
_TOP = (
    r"(?:xn--[A-Za-z0-9-]{2,59}+|[A-Za-z]{2,24}+)(?![A-Za-z0-9_@(]|-[A-Za-z0-9])"
    "|[\u0370-\u03ff\u0400-\u04ff\u05d0-\u05ea\u0620-\u064a\u0900-\u0e7f\u10d0-\u10ff\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7a3]{2,12}+(?!@)"
)
EMAIL = re.compile(
    rf"[{_NAME}](?<![{_NAME}@].)[{_NAME}.%+'-]{{0,63}}+(?<!\.)@(?![0-9]+\.[0-9]|[0-9]x\.)(?:[^\W_][\w-]{{0,62}}+\.){{1,8}}(?:{_TOP})"
)
REMOTE = re.compile(r"git@[\w.-]{1,80}[:/]")

# A number to call. Digits in a row are no sign of one by themselves: a plus, brackets or the usual groups are, or a word before it.
_CODE = (  # the country codes of ITU-T E.164
    r"(?:1|7|2(?:[07]|[1-689]\d)|3(?:[0-469]|[578]\d)|4(?:[013-9]|2\d)|5(?:[1-8]|[09]\d)|6(?:[0-6]|[7-9]\d)|8(?:[1246]|[0578]\d)|9(?:[0-58]|[679]\d))"
)
_BEFORE = "(?<![\\w.,$€£#%+/-].)"
_AFTER = r"(?!\w|[-./,]\d)"
PHONE = re.compile(
    r"[+(0-9](?=[\d \xa0().\/-]{7})" + _BEFORE + "(?:"
    r"(?<=\+)(?:\(?1\)?(?:[ \xa0.()/-]{0,3}+(?=[2-9])|(?=[2-9]))\d(?:[ \xa0.()-]{0,3}+\d){9}|\(?(?!1)[2-9](?:[ \xa0.()/-]{0,3}+\d){7,14})"
    r"|(?<=\()(?:\d{3}\)[ \xa0.-]{0,2}\d{3}[ \xa0.-]\d{4}|0\d{1,5}\)[ \xa0]?\d{2,4}(?:[ -]?\d{2,4}){1,3}|\d{2}\)[ ]?\d{4,5}[ -]\d{4})"
    r"|(?<=1)(?P<one>[-. ])\(?[2-9]\d\d\)?(?:(?P=one)|[ ])\d{3}[-. ]\d{4}"
    r"|(?<=\d)\d\d(?P<us>[-.])\d{3}(?P=us)\d{4}"
    r"|(?<=0)(?:[1-9](?P<fr>[ .-])\d\d(?:(?P=fr)\d\d){3}|[1-9][ -]\d{4}[ -]\d{4}|[1-9]-\d{8}|[1-9]\d{1,3}[-/ ]\d{3,4}[- ]\d{3,5}|[1-9]\d{1,3}[/ ]\d{6,8})"
    rf"|(?<=0)0{_CODE}[ /-]\(?\d{{1,5}}\)?(?:[ /-]?\d{{2,8}}){{1,4}}"
    r"|(?<=1)[3-9]\d(?P<cn>[ -])\d{4}(?P=cn)\d{4}"
    r")" + _AFTER + r"(?:[ ,]{0,2}(?:ext\.?|x)[ ]?\d{1,6}(?!\w))?"
)
NUMBER = re.compile(r"[0-9](?=[\d .-]{6})" + _BEFORE + r"\d{1,14}+(?:[ .-]\d{2,14}+){0,4}" + _AFTER)
CALL = re.compile(
    r"(?i:phone|telephone|telefon|\btel|\bmobile|\bcell|\bfax|whatsapp|\bsms|\bcall|\bdial|\btext|\bhandy|t[ée]l[ée]fono?|m[oó]vil)"
    r"(?i:[ _-]?(?:number|no|nr|num))?[\s\"'*:=.#\\_]{0,6}(?i:(?:(?:us|me|him|her|them) )?(?:is|at|on) )?$"
)
DATE = re.compile(r"\d{4}([-. ])\d{1,2}\1\d{1,2}\b|\d{1,2}([-. ])\d{1,2}\2(?:19|20)\d\d\b|(?:19|20)\d\d[ -](?:19|20)\d\d\b")
CODE = re.compile(_CODE)

# A payment card: ISO/IEC 7812 numbers as they are written on cards, told by network and length, then by the check digit.
CARD = re.compile(
    r"[2-68](?=\d{3}[\d -]{9})(?<![\w.,+$€£-].)(?<!\d{4} .)(?:\d{12,18}|\d{3}(?P<gap>[ -])(?:\d{4}(?P=gap)\d{4}(?P=gap)\d{1,4}(?:(?P=gap)\d{1,3})?|\d{6}(?P=gap)\d{4,5})"
    r"|\d{3}[ -]\d{4}[ -]\d{5}|\d{7}[ -]\d{8}|\d{5}[ -]\d{10,13})(?!\w|[-.,]\d|[ ]\d{4}(?!\d))"
)
NETWORK = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})"  # Visa
    r"|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}"  # Mastercard
    r"|3[47]\d{13}"  # American Express
    r"|6(?:011|4[4-9]\d|5\d\d)\d{12,15}|62\d{14,17}|81\d{14,17}"  # Discover, UnionPay
    r"|3(?:0[0-5]|095|[689]\d)\d{11}|3095\d{10}|35(?:2[89]|[3-8]\d)\d{12,15}"  # Diners, JCB
    r"|(?:5018|5020|5038|5893|6304|6759|676[1-3])\d{9,15}"  # Maestro
    r"|220[0-4]\d{12}|(?:60|82)\d{14}|508\d{13}"  # Mir, RuPay
)

# Keys by the prefixes that their makers gave them so that they can be found; lengths as in the rules of gitleaks 8 and of the makers.
_KEYS = {
    "sk-": r"(?:ant-[\w-]{20,200}|(?:proj|svcacct|service|admin|None|or-v1)-[\w-]{20,250}|[A-Za-z0-9]{32,64}|[A-Za-z0-9]{20}T3BlbkFJ[A-Za-z0-9]{20})",
    "sk_": r"(?:live|test)_[A-Za-z0-9]{16,247}",
    "rk_": r"(?:live|test)_[A-Za-z0-9]{16,247}",
    "whsec_": r"[A-Za-z0-9+/]{32,64}={0,2}",
    "hf_": r"[A-Za-z0-9]{30,40}",
    "api_org_": r"[A-Za-z0-9]{34}",
    "ghp_": r"[A-Za-z0-9]{36,255}",
    "gho_": r"[A-Za-z0-9]{36,255}",
    "ghu_": r"[A-Za-z0-9]{36,255}",
    "ghs_": r"[A-Za-z0-9]{36,255}",
    "ghr_": r"[A-Za-z0-9]{36,255}",
    "github_pat_": r"\w{36,255}",
    "glpat-": r"[\w-]{20,300}(?:\.[\w.]{9,20})?",
    "glrt-": r"[\w-]{20,300}",
    "gldt-": r"[\w-]{20,300}",
    "AKIA": r"[A-Z2-7]{16}",
    "ASIA": r"[A-Z2-7]{16}",
    "AIza": r"[\w-]{35}",
    "GOCSPX-": r"[\w-]{28}",
    "ya29.": r"[\w-]{40,1000}",
    "xox": r"(?:[abeoprs]|e\.xox[bp])-(?:\d{1,4}-)?[A-Za-z0-9]{6,}-?[A-Za-z0-9-]{4,250}",
    "xapp-": r"\d-[A-Z0-9]{6,20}-\d{6,20}-[A-Za-z0-9]{20,100}",
    "hooks.slack.com/services/": r"T\w{6,14}/B\w{6,14}/\w{20,30}",
    "SG.": r"[\w-]{16,32}\.[\w-]{16,64}",
    "npm_": r"[A-Za-z0-9]{36}",
    "pypi-": r"AgE[\w-]{50,1000}",
    "SK": r"[0-9a-f]{32}",
    "dop_v1_": r"[0-9a-f]{64}",
    "doo_v1_": r"[0-9a-f]{64}",
    "dor_v1_": r"[0-9a-f]{64}",
    "dckr_pat_": r"[\w-]{27,40}",
    "gsk_": r"[A-Za-z0-9]{48,60}",
    "xai-": r"[A-Za-z0-9]{70,100}",
    "pplx-": r"[A-Za-z0-9]{40,64}",
    "nvapi-": r"[\w-]{60,80}",
    "r8_": r"[A-Za-z0-9]{37}",
    "shpat_": r"[0-9a-fA-F]{32}",
    "eyJ": r"[\w-]{10,2000}+\.eyJ[\w-]{10,8000}+(?:\.[\w-]{10,2000}+)?",
}
# \n and the like, written out in JSON inside a text, leave a letter before the key.
KEYS = {
    prefix: re.compile(rf"{re.escape(prefix)}(?:(?<![A-Za-z0-9]{re.escape(prefix)})|(?<=\\[nrt]{re.escape(prefix)}))(?:{rest})(?![A-Za-z0-9])")
    for prefix, rest in _KEYS.items()
}
BOT = re.compile(r":AA(?<=\d{8}:AA)[\w-]{32,34}(?![\w-])")  # Telegram: the bot's number stands before the colon
BOT_NUMBER = re.compile(r"(?<!\d)\d{8,10}$")
DISCORD = re.compile(r"\.[\w-]{6}\.[\w-]{27,38}(?![\w-])")
DISCORD_ID = re.compile(r"(?<![\w.-])[MNO][A-Za-z0-9_-]{22,27}$")

MARKER = re.compile(r"----(?:-|[ ])(?P<which>BEGIN|END)[ ](?P<what>[A-Z0-9 ]{0,40}?)PRIVATE KEY(?: BLOCK)?(?:[ ]|-)----")
HEADER = re.compile(r"(?:\s|\\[nr]|[A-Z][A-Za-z-]{2,20}:[ ][^\n\\]{0,100}){0,40}")
BODY = re.compile(r"(?:\s|\\[nr]|[A-Za-z0-9+/=]{16,}+|=[A-Za-z0-9+/]{4}(?![A-Za-z0-9])|[A-Za-z0-9+/]{1,15}={1,2}|[A-Za-z0-9+/]{4,15}+\s*\Z){0,20000}")
START = re.compile(r"[A-Za-z0-9+/]{16}|[A-Za-z0-9+/=]{4,}+(?:\s*\n|\\|\s*\Z)")


# Whether a text may hold any key at all: forty searches for forty prefixes would cost more than everything else here.
HINTS = tuple(re.compile(hint) for hint in (r"_[\w-]{14}", r"-[\w-]{14}", r"A(?:[KS]IA|Iza)", r"S(?:G\.|K[0-9a-f])", "eyJ", r"ya29\.", "hooks.slack"))


def _private_keys(text: str):
    """Private keys in text armour, also without their end: from the marker to where the letters of the key stop."""
    if "PRIVATE KEY" not in text:
        return
    markers = list(MARKER.finditer(text))
    at = 0
    for marker, following in zip(markers, [*markers[1:], None]):
        if marker["which"] == "END" or marker.start() < at:
            continue
        start = HEADER.match(text, marker.end()).end()
        if start == marker.end() or not START.match(text, start):
            continue  # a sentence about such keys
        if following is not None and following["which"] == "END" and following.start() - marker.end() <= 40_000:
            at = following.end()
        else:
            at = BODY.match(text, start).end()
            at -= len(text[start:at]) - len(text[start:at].rstrip())
        yield marker.start(), at


def _keys(text: str):
    """Keys by their prefixes; a place for a key, such as sk-xxxx or hf_YOUR_TOKEN, is none."""
    if any(hint.search(text) for hint in HINTS):
        for prefix, pattern in KEYS.items():
            if prefix in text:
                for match in pattern.finditer(text):
                    if _random(match[0][len(prefix):]):
                        yield match.span()
    if ":AA" in text:
        for match in BOT.finditer(text):
            number = BOT_NUMBER.search(text, max(0, match.start() - 11), match.start())
            if number and _random(match[0]):
                yield number.start(), match.end()
    for match in DISCORD.finditer(text):
        account = DISCORD_ID.search(text, max(0, match.start() - 29), match.start())
        if account and _random(account[0] + match[0]):
            yield account.start(), match.end()


def _random(body: str) -> bool:
    """Whether the letters may have been drawn by chance: many different ones, and not words alone."""
    return len(set(body)) >= 8 and (any(letter.isdigit() for letter in body) or (body.lower() != body != body.upper() and "-" not in body))


def _emails(text: str):
    """Addresses of people; the git@ of a remote is the same for everybody."""
    if "@" not in text:
        return
    for match in EMAIL.finditer(text):
        if not REMOTE.match(text, match.start()):
            yield match.span()


def _digits(text: str) -> int:
    """How many of 0 to 9 the text holds."""
    return len(text.encode("ascii", "ignore").translate(None, NOT_DIGITS))


def _cards(text: str):
    """Numbers of payment cards: written like one, of a known network, with the right check digit (Luhn, US patent 2950048)."""
    if _digits(text) < 13:
        return
    for match in CARD.finditer(text):
        digits = match[0].replace(" ", "").replace("-", "")
        if NETWORK.fullmatch(digits) and len(set(digits)) > 1:
            doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
            if (sum(map(int, digits[-1::-2])) + sum(doubled)) % 10 == 0:
                yield match.span()


def _phones(text: str):
    """Numbers to call: written like one, or after a word such as "phone:"."""
    if _digits(text) < 7:
        return
    taken = []
    for match in PHONE.finditer(text):
        number = match[0]
        if "ISBN" in text[max(0, match.start() - 12):match.start()] or DATE.match(number):
            continue
        digits = [letter for letter in number if letter.isdigit()]
        if number[0] == "+":
            country = CODE.match("".join(digits))
            if not country or len(digits) < 8 or (number[1:].replace(".", "", 1).isdigit() and "." in number) or number.endswith("000 000"):
                continue
        elif len(digits) < 9 or len(set(digits)) == 1 and digits[0] == "0":
            continue
        taken.append(match.span())
        yield match.span()
    for match in NUMBER.finditer(text):
        start, end = match.span()
        before = text[max(0, start - 40):start]
        if not before.rstrip(" \t\r\n\"'*:=.#\\_")[-1:].isalpha() or not CALL.search(before):
            continue
        if not 7 <= sum(map(str.isdigit, match[0])) <= 15 or DATE.match(match[0]):
            continue
        if not any(start < other_end and other < end for other, other_end in taken):
            yield start, end


def find(text: str) -> list[tuple[int, int, str]]:
    """Every address, number, card and key in the text as (start, end, kind), in order, not overlapping."""
    found = []
    left = text
    for look, kind in ((_private_keys, "private key"), (_keys, "key"), (_emails, "email"), (_cards, "card"), (_phones, "phone")):
        new = sorted(set(look(left)))
        if not new:
            continue
        parts, at = [], 0
        for start, end in new:
            if start >= at:  # two prefixes may meet in one key
                found.append((start, end, kind))
                parts += (left[at:start], WALL * (end - start))
                at = end
        left = "".join(parts) + left[at:]
    return sorted(found)


def count(text: str) -> tuple[int, ...]:
    """How many of each kind the text holds, in the order of KINDS."""
    found = find(text)
    if not found:
        return NOTHING
    kinds = [kind for _start, _end, kind in found]
    return tuple(kinds.count(kind) for kind in KINDS)


def mask(text: str) -> str:
    """The text with each find replaced by its kind: [EMAIL], [PHONE], [CARD], [KEY], [PRIVATE KEY]."""
    while found := find(text):  # again, because what stood next to a find may be one itself now
        parts, at = [], 0
        for start, end, kind in found:
            parts += (text[at:start], MASKS[kind])
            at = end
        text = "".join(parts) + text[at:]
    return text


def shown(text: str, start: int, end: int, kind: str) -> str:
    """A find as a page may show it: enough to recognise it in one's own data, too little to use it."""
    found = text[start:end]
    if kind == "email":
        name, _at, server = found.rpartition("@")
        server, _dot, top = server.rpartition(".")
        return f"{name[:1] if len(name) > 1 else ''}…@{server[:1] if len(server) > 1 else ''}….{top}"
    if kind == "private key":
        return "-----BEGIN … PRIVATE KEY-----"
    if kind == "key":
        prefix = max((prefix for prefix in KEYS if found.startswith(prefix)), key=len, default="")
        return f"{prefix}…"
    digits = "".join(letter for letter in found if letter in "0123456789")
    if kind == "card":
        return f"{digits[0]}… … {digits[-4:]}"
    country = f"+{CODE.match(digits)[0]} " if found[0] == "+" and CODE.match(digits) else ""
    return f"{country}… {digits[-2:]}"
