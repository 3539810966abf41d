"""A customer's text made fit to read, score and keep: cut, cleaned, personal numbers replaced.

`scrub` aims at few mistakes among ordinary numbers first and at catching all second: a number is replaced if it has
a check digit and a length and prefix in use, or its country's written format, or a word before it that says what
it is. Names and addresses stay: no pattern tells them from products and places.
"""

from __future__ import annotations

import re
import sys
import unicodedata

from streaming.scrub.finders import FINDERS

# A number or address that the cut would divide is seen whole if it ends within this much: an e-mail
# address may have 254 bytes.
_MARGIN = 256
_PART_OF_PLACEHOLDER = re.compile(r"<[A-Z]{0,5}\Z")

_BREAKS = "\t\n\v\f\r\x85"
_CLEANING: dict[int, str | None] = {
    **dict.fromkeys((*range(0x20), *range(0x7F, 0xA0), 0xFEFF)),
    **dict.fromkeys(map(ord, _BREAKS), " "),
    **dict.fromkeys(range(0xD800, 0xE000), "\ufffd"),
}


def clean(text: str, max_bytes: int) -> str:
    """`text` without control characters and lone surrogates, scrubbed, in at most `max_bytes` of UTF-8.

    Line breaks and tabs become spaces. Takes no longer for a text of any length beyond the cut.
    """
    text = text[: max_bytes + _MARGIN]  # a character has at least a byte
    if not text.isprintable():
        text = text.translate(_CLEANING)
    scrubbed = scrub(_cut(text, max_bytes + _MARGIN))
    cut = _cut(scrubbed, max_bytes)
    return cut if len(cut) == len(scrubbed) else _PART_OF_PLACEHOLDER.sub("", cut)


def _cut(text: str, max_bytes: int) -> str:
    if len(text) * 4 <= max_bytes:  # a character has at most four bytes
        return text
    return text.encode()[:max_bytes].decode(errors="ignore")


# The shortest thing to find has six digits, or an "@". Most texts have neither.
_DIGITS_AND_AT = b"0123456789@"
_DIGIT_OR_AT = re.compile(r"[\d@＠]")
_SIX_DIGITS_OR_AT = re.compile(r"[@＠]|\d(?:\D*\d){5}")


def _may_hold_something(text: str) -> bool:
    if text.isascii():  # three times as fast as a pattern
        found = len(text) - len(text.encode().translate(None, _DIGITS_AND_AT))
        return found >= 6 or (found > 0 and "@" in text)
    return _DIGIT_OR_AT.search(text) is not None and _SIX_DIGITS_OR_AT.search(text) is not None


# How a number looks to a reader: full-width and other scripts' digits as ASCII, one kind of space and dash.
_PLAIN = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
_PLAIN |= {
    code: str(unicodedata.decimal(chr(code)))
    for code in range(0x80, sys.maxunicode + 1)
    if unicodedata.category(chr(code)) == "Nd"
}
_PLAIN |= dict.fromkeys((0xA0, *range(0x2000, 0x200B), 0x202F, 0x3000), " ")
_PLAIN |= dict.fromkeys((*range(0x2010, 0x2016), 0x2212), "-")
# Zero-width and direction marks, soft hyphen, and what makes a keycap of a digit.
_INVISIBLE = frozenset(
    map(
        chr,
        (0xAD, 0x180E, *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x206A), 0xFE0F, 0x20E3, 0xFEFF),
    )
)


def scrub(text: str) -> str:
    """Replace e-mail addresses, phone numbers, payment cards, IBANs and personal ids.

    They become `<EMAIL>`, `<PHONE>`, `<CARD>`, `<IBAN>` and `<ID>`; everything else stays as it is, character for
    character. Idempotent, and linear in the length of `text`.
    """
    if not _may_hold_something(text):
        return text
    view, where = _view(text)
    spans: list[tuple[int, int, str]] = []
    for placeholder, find in FINDERS:
        found = list(find(view))
        if found:
            spans += [(start, end, placeholder) for start, end in found]
            # Not seen by later finders, and like a placeholder in that it is neither letter nor digit.
            view = _replaced(view, [(start, end, "\0" * (end - start)) for start, end in found])
    if not spans:
        return text
    return _replaced(text, [(where[start], where[end], word) for start, end, word in sorted(spans)])


def _view(text: str) -> tuple[str, range | list[int]]:
    """What a reader sees of `text`, and where each of its characters, and its end, stands in `text`."""
    view = text if text.isascii() else text.translate(_PLAIN)
    if _INVISIBLE.isdisjoint(view):
        return view, range(len(view) + 1)
    where = [index for index, char in enumerate(view) if char not in _INVISIBLE]
    return "".join([view[index] for index in where]), [*where, len(view)]


def _replaced(text: str, spans: list[tuple[int, int, str]]) -> str:
    parts: list[str] = []
    last = 0
    for start, end, word in spans:
        parts += (text[last:start], word)
        last = end
    return "".join((*parts, text[last:]))
