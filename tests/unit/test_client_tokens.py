"""Tokens survive their text, nothing else passes for one, and a profile holds an event from its offset on."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.client import InvalidArgument, ProfileUnreadable, Token
from streaming.client.tokens import decode, encode, holds
from tests import stored

ids = st.text(
    st.characters(min_codepoint=0x20, exclude_characters="{}\x7f", exclude_categories=["Cs"]), min_size=1, max_size=128
)
tokens = st.builds(
    Token, ids, st.from_regex(r"[A-Za-z0-9._-]{1,60}", fullmatch=True), st.integers(0, 2**31 - 1), st.integers(0, 2**63)
)
TOKEN = Token("c1", "chat-events", 3, 40)


@given(tokens)
def test_a_token_comes_back_from_its_text_which_fits_a_url(token: Token) -> None:
    text = encode(token)
    assert re.fullmatch(r"[A-Za-z0-9_-]+", text)
    assert decode(text) == token


@given(st.text() | st.binary().map(lambda raw: raw.hex()))
def test_any_other_text_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidArgument, match="at_least: is not a token"):
        decode(text, "at_least")


def test_a_token_cut_or_changed_is_refused() -> None:
    text = encode(TOKEN)
    for wrong in (text[:-1], text + "A", text + "=", f" {text}", text[:-2] + "__", "é" + text, None, 7):
        with pytest.raises(InvalidArgument):
            decode(wrong)  # type: ignore[arg-type]
    for impossible in (
        Token("a{b}", "t", 0, 0),
        Token("a", "t/0", 0, 0),
        Token("a", "t", -1, 0),
        Token("a", "t", 0, -1),
    ):
        with pytest.raises(InvalidArgument):
            decode(encode(impossible))


@pytest.mark.parametrize(
    ("fence", "held"),
    [
        ({}, False),
        ({"chat-events/3/e1": 39}, False),
        ({"chat-events/3/e1": 40}, True),
        ({"chat-events/3/e1": 41}, True),
        ({"chat-events/33/e1": 99, "order-events/3/e1": 99, "chat-events/2/e1": 99}, False),
        ({"chat-events/3/e1": 2, "chat-events/3/e2": 40}, True),
    ],
)
def test_a_profile_holds_an_event_from_its_offset_on(fence: dict[str, int], held: bool) -> None:
    assert holds(fence, TOKEN) is held
    assert holds(stored.folded({"v": 1, "id": "c1", "u": 1, "f": fence or {"x/0/e": 1}, "s": {}}), TOKEN) is held


def test_a_damaged_profile_is_named() -> None:
    with pytest.raises(ProfileUnreadable):
        holds(b"\xc1", TOKEN)
