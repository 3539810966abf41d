"""Finders of what is personal among numbers and addresses, one a kind. They see ASCII digits only."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from stdnum import ean, iban, luhn
from stdnum.br import cpf
from stdnum.cn import ric
from stdnum.es import dni, nie
from stdnum.fr import nir
from stdnum.gb import nhs
from stdnum.in_ import aadhaar
from stdnum.it import codicefiscale
from stdnum.kr import rrn
from stdnum.us import ssn

Find = Callable[[str], Iterator[tuple[int, int]]]
Accept = Callable[["re.Match[str]"], int]


# Digits without a break right after these are what the customer says that they are.
_ORDER_WORD = re.compile(
    r"(?i:order|invoice|tracking|parcel|订单|单号|运单|发票|货号|条码)(?:[\s:：=#]|number|num|nr|no|id|is|号码?|是){0,6}\Z"
)
_WORD_CHARS = 32  # of the text before a number are looked at


def _finder(pattern: str, accept: Accept, *, before: str = "", alone: bool = False) -> Find:
    """Finds what `pattern` matches, up to where `accept` says that it ends; 0: not at all.

    `before` has to stand before it; with `alone`, a group of digits may not: it would be the middle of something else.
    Nothing begins or ends within letters and digits, so that replacing one thing never uncovers another. Time is
    linear in the text, because every pattern bounds its repeats.
    """
    # "+" and "(" divide by themselves, and a word before it does ("QQ12345").
    apart = "" if before or pattern.startswith(("(?:[+]", "(?:[(]")) else "(?<![0-9A-Za-z])"
    compiled = re.compile(f"{before}{apart}(?P<it>{pattern})(?![0-9A-Za-z])", re.ASCII)

    def find(view: str) -> Iterator[tuple[int, int]]:
        begin = last_end = 0
        while match := compiled.search(view, begin):
            start = match.start("it")
            end = accept(match)
            if end and view[start:end].isdigit() and _ORDER_WORD.search(view[max(0, start - _WORD_CHARS) : start]):
                end = 0
            if end and alone and start - last_end >= 4 and view[start] != "(":
                preceding = view[start - 4 : start]
                end = 0 if preceding[:3].isdigit() and preceding[3] in " .-" else end
            if end:
                yield start, end
                last_end = end
            begin = end or match.start() + 1

    return find


def _always(match: re.Match[str]) -> int:
    return match.end()


def _valid(is_valid: Callable[[str], bool], separators: str = " -") -> Accept:
    drop = str.maketrans("", "", separators)
    return lambda match: match.end() if is_valid(match["it"].translate(drop).upper()) else 0


_RUN = re.compile(r"[0-9]+")


def _leading_groups(match: re.Match[str]) -> list[tuple[list[str], int]]:
    """The match's first k groups of digits and where they end, for each k."""
    runs = list(_RUN.finditer(match.string, match.start("it"), match.end()))
    digits = [run[0] for run in runs]
    return [(digits[: k + 1], run.end()) for k, run in enumerate(runs)]


def _is_date(groups: list[str]) -> bool:
    """2010-12-01, 01.12.2010, 20101201."""
    sizes = [len(group) for group in groups[:3]]
    if sizes[:1] == [8]:
        groups, sizes = [groups[0][:4], groups[0][4:6], groups[0][6:]], [4, 2, 2]
    if len(sizes) < 3 or sum(sizes) > 8:
        return False
    year, others = (groups[0], groups[1:3]) if sizes[0] == 4 else (groups[2], groups[:2])
    return len(year) == 4 and year[:2] in ("19", "20") and all(1 <= int(other) <= 31 for other in others)


_LETTERS = r"0-9A-Za-z\-À-ɏ"
_IN_LOCAL_PART = re.compile(f"[{_LETTERS}_%+.]")
_DOMAIN = re.compile(rf"(?:[{_LETTERS}]+\.)+[A-Za-z]{{2,63}}(?![0-9A-Za-z])")


def _emails(view: str) -> Iterator[tuple[int, int]]:
    """From each "@" outwards: a pattern would read a long word to its end from each of its letters."""
    end = 0
    at = view.find("@")
    while at >= 0:
        start = at
        while start > end and _IN_LOCAL_PART.match(view, start - 1):
            if view[start - 1 : start + 1] == "..":  # "Hi...john@": no address has these
                break
            start -= 1
        start += view[start] == "."
        domain = _DOMAIN.match(view, at + 1) if start < at else None
        if domain:
            end = domain.end()
            yield start, end
        at = view.find("@", max(at + 1, end))


# Prefixes in use (ISO/IEC 7812; the schemes' own ranges) and lengths issued under them.
_CARD = re.compile(
    "|".join(
        f"(?={prefix})(?:{'|'.join(f'[0-9]{{{length}}}' for length in lengths)})"
        for prefix, lengths in (
            ("4", (13, 16, 19)),  # Visa
            ("5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720", (16,)),  # Mastercard
            ("3[47]", (15,)),  # American Express
            ("62|81", (16, 17, 18, 19)),  # UnionPay
            ("6011|64[4-9]|65|60|82", (16, 19)),  # Discover, RuPay
            ("352[89]|35[3-8]", (16, 19)),  # JCB
            ("30[0-5]|3[689]", (14, 16, 19)),  # Diners Club
            ("5[06-8]|6[37]|220[0-4]|9792", (16, 18, 19)),  # Maestro, Mir, Troy
        )
    )
)
# As printed, besides groups of four: American Express, Diners Club, and what people make of 16 and 19.
_CARD_GROUPS = {(4, 6, 5), (4, 6, 4), (8, 8), (6, 10), (6, 13)}


def _card(match: re.Match[str]) -> int:
    for groups, end in reversed(_leading_groups(match)):
        number = "".join(groups)
        sizes = tuple(map(len, groups))
        if (
            _CARD.fullmatch(number)
            and (sizes in _CARD_GROUPS or (set(sizes[:-1]) <= {4} and (sizes[-1] <= 4 or len(sizes) == 1)))
            and luhn.is_valid(number)
            # A tenth of all barcodes that begin with 4 are also Luhn-valid; Visa's 13 digits are long out of use.
            and not (len(number) == 13 and ean.is_valid(number))
        ):
            return end
    return 0


# From SWIFT's registry. The next word may look like more of the number, so its length has to be known.
_IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO", 16: "BE", 18: "DK FI FK FO GL NL SD", 19: "MK SI", 20: "AT BA EE KZ LT LU MN XK", 21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM SO TL", 24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST", 26: "IS TR", 27: "BI DJ FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
        29: "BR EG PS QA UA", 30: "JO KW MU YE", 31: "MT SC", 32: "LC", 33: "RU",
    }.items()
    for country in countries.split()
}  # fmt: skip


def _iban(match: re.Match[str]) -> int:
    view, start = match.string, match.start("it")
    length = _IBAN_LENGTHS.get(view[start : start + 2].upper(), 99)
    places = [place for place in range(start, match.end()) if view[place].isalnum()][:length]
    end = places[-1] + 1
    if len(places) < length or view[end : match.end()][:1].isalnum():
        return 0
    return end if iban.is_valid("".join([view[place] for place in places])) else 0


# Digits after the country code (ITU-T E.164 and the national plans), for the codes that customers are
# likely to write. Other codes: at least 7 with the code.
_NATIONAL_DIGITS = {
    "1": (10, 10), "7": (10, 10), "20": (8, 10), "27": (9, 9), "30": (10, 10), "31": (9, 9), "32": (8, 9),
    "33": (9, 9), "34": (9, 9), "36": (8, 9), "39": (6, 11), "40": (9, 9), "41": (9, 9), "43": (7, 13),
    "44": (9, 10), "45": (8, 8), "46": (7, 9), "47": (8, 8), "48": (9, 9), "49": (6, 12), "52": (10, 10),
    "55": (10, 11), "60": (8, 10), "61": (9, 9), "62": (8, 12), "63": (8, 10), "64": (8, 10), "65": (8, 8),
    "66": (8, 9), "81": (9, 10), "82": (8, 10), "84": (9, 10), "86": (9, 11), "90": (10, 10), "91": (10, 10),
    "351": (9, 9), "352": (6, 9), "353": (7, 9), "354": (7, 7), "356": (8, 8), "357": (8, 8), "358": (6, 10),
    "359": (7, 9), "370": (8, 8), "371": (8, 8), "372": (7, 8), "380": (9, 9), "385": (8, 9), "386": (8, 8),
    "420": (9, 9), "421": (9, 9), "852": (8, 8), "853": (8, 8), "886": (8, 9), "966": (8, 9), "971": (8, 9),
}  # fmt: skip


def _international(match: re.Match[str]) -> int:
    with_plus = match["it"].startswith("+")
    for groups, end in reversed(_leading_groups(match)):
        if (
            not with_plus and len(groups) == 1 and ean.is_valid(groups[0])
        ):  # a barcode: American ones have zeros before them
            continue
        digits = "".join(groups) if with_plus else "".join(groups)[2:]
        code = next((digits[:n] for n in (1, 2, 3) if digits[:n] in _NATIONAL_DIGITS), None)
        if code is None:
            if with_plus and 7 <= len(digits) <= 15:
                return end
            continue
        least, most = _NATIONAL_DIGITS[code]
        national = digits.removeprefix(code)
        trunk = 1 if national.startswith("0") and code != "39" else 0  # +44 (0)20 …
        if least <= len(national) - trunk <= most:
            return end
    return 0


def _trunk(match: re.Match[str]) -> int:
    """A national number with its leading 0, grouped as people write them in the UK, the EU and China."""
    for groups, end in reversed(_leading_groups(match)):
        total = sum(map(len, groups))
        first, *rest = map(len, groups)
        if not rest:  # 07911123456, 02079460958, 01012345678: no other length is safe without a word before it
            fits = total == 11 and groups[0][1] in "1237"
        else:
            pairs = first == 2 and len(rest) == 4 and set(rest) == {2}  # 06 12 34 56 78
            fits = 9 <= total <= 12 and (pairs or (2 <= first <= 5 and min(rest) >= 3 and len(rest) <= 3))
        if fits:
            return end
    return 0


def _after_word(match: re.Match[str]) -> int:
    """The digits after "call me on": as few groups as make nine digits, or seven or eight in all."""
    prefixes = _leading_groups(match)
    groups, end = next((prefix for prefix in prefixes if sum(map(len, prefix[0])) >= 9), prefixes[-1])
    return 0 if _is_date(groups) else end


# Between such a word and its number.
_FILLER = (
    r"(?:[\s:：=#.,，;.()-]|number|num|nr|no|card|code|is|was|are|me|us|him|her|back|at|on|under|via|my|the"
    r"|号码?|证号?|是|为|码){0,8}"
)
_PHONE_WORD = (
    r"(?i:(?:(?<![A-Za-z])(?:(?:tele|mobile[ -]?|cell[ -]?)?phone|tel|mobile|cell|whatsapp|fax|call|dial"
    r"|(?:reach|ring|contact)(?: (?:me|us|him|her|them|at|on|under|via)){1,3}"
    r"|telefon(?:nummer|o)?|handynummer|rufnummer|téléphone|teléfono|móvil|cellulare)"
    r"|电话|手机号|手机[:：]|联系方式|联系|致电|拨打|来电|微信|热线|传真)"
    rf"{_FILLER})"
)


def _ric(number: str) -> bool:
    # stdnum's own `is_valid` also wants a district that it knows; districts change.
    return bool(ric.calc_check_digit(number) == number[-1])


def _dni(number: str) -> bool:
    if number[0] in "XYZ":
        return bool(nie.is_valid(number))
    return dni.is_valid(number) and not _is_date([number[:8]])


def _aadhaar(number: str) -> bool:
    years = all(number[place : place + 2] in ("19", "20") for place in (0, 4, 8))
    return aadhaar.is_valid(number) and not years


def _id_after_word(match: re.Match[str]) -> int:
    groups = _RUN.findall(match["it"])
    return 0 if sum(map(len, groups)) < 6 or _is_date(groups) else match.end()


_ID_WORD = (
    r"(?i:(?:(?<![A-Za-z])(?:social security|ssn|nhs|national insurance|passport|driv(?:er'?s|ing) licen[cs]e|tax id"
    r"|identity card|id card|national id|aadhaa?r|pan card|bsn|burgerservicenummer|cpf|dni|(?-i:NINO|NIE|PAN)"
    r"|codice fiscale|steuer-?id(?:nr)?|idnr|personnummer|pesel|qq)|身份证|护照|社保|驾照|证件)"
    rf"{_FILLER})"
)
_BIRTH_DATE = r"(?:18|19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])"
_CODICE_FISCALE = r"(?i:[A-Z]{6}[0-9L-V]{2}[A-T][0-9L-V]{2}[A-Z][0-9L-V]{3}[A-Z])"
_NIR = r"[12] ?\d\d ?(?:0[1-9]|1[0-2]) ?(?:\d\d|2[AB]) ?\d{3} ?\d{3} ?\d\d"
_SOME_ID = r"(?:[A-Za-z]{0,5}-?|[A-Z]{1,3} )\d(?:[ ./-]?\d){3,17}(?:[A-Za-z]|[ -]?[A-Z])?"
_NORTH_AMERICAN = r"(?:[(][2-9]\d\d\) ?|(?<![0-9A-Za-z])(?:1[ .-])?[2-9]\d\d[.-])[2-9]\d\d[ .-]\d{4}"

# In order: what is longer or surer goes first.
FINDERS: tuple[tuple[str, Find], ...] = (
    ("<EMAIL>", _emails),
    ("<IBAN>", _finder(r"[A-Za-z]{2}\d\d(?:[ -]?[0-9A-Za-z]){11,30}", _iban)),
    ("<ID>", _finder(rf"[1-9]\d{{5}}[ -]?{_BIRTH_DATE}[ -]?\d{{3}}[0-9Xx]", _valid(_ric))),  # China
    ("<ID>", _finder(_CODICE_FISCALE, _valid(codicefiscale.is_valid))),  # Italy
    ("<ID>", _finder(r"(?:\d{8}|[XYZ]-?\d{7})-?[A-Z]", _valid(_dni))),  # Spain
    ("<ID>", _finder(_NIR, _valid(nir.is_valid))),  # France
    ("<ID>", _finder(r"\d{6}-\d{7}", _valid(rrn.is_valid))),  # Korea
    ("<ID>", _finder(r"\d{3}\.\d{3}\.\d{3}-\d\d", _valid(cpf.is_valid, ".-"))),  # Brazil
    ("<ID>", _finder(r"\d{3}-\d\d-\d{4}", _valid(ssn.is_valid))),  # USA
    ("<CARD>", _finder(r"[2-9]\d{3}(?:[ .-]?\d){9,15}", _card)),
    ("<ID>", _finder(_SOME_ID, _id_after_word, before=_ID_WORD)),
    ("<PHONE>", _finder(r"(?:[+] ?|(?<![0-9A-Za-z])00)[1-9](?:[ ./()-]{0,3}\d){6,17}", _international)),
    ("<PHONE>", _finder(r"(?:86[ -]?)?1[3-9]\d(?:[ -]?\d{4}){2}", _always)),  # China, mobile
    ("<PHONE>", _finder(_NORTH_AMERICAN, _always)),
    ("<PHONE>", _finder(r"(?:[(](?=\d{1,5}[)]))?\d(?:[ ./()-]{0,3}\d){6,14}", _after_word, before=_PHONE_WORD)),
    ("<PHONE>", _finder(r"(?:[(](?=\d{2,5}[)])|(?<![0-9A-Za-z]))0[1-9](?:[ ./()-]{0,3}\d){7,10}", _trunk, alone=True)),
    # Last, because they look like no more than three groups of digits.
    ("<ID>", _finder(r"\d{3} \d{3} \d{4}(?![ .-]?\d)", _valid(nhs.is_valid), alone=True)),  # UK
    ("<ID>", _finder(r"[2-9]\d{3} \d{4} \d{4}(?![ .-]?\d)", _valid(_aadhaar), alone=True)),  # India
)
