"""Texts to token ids, straight into numpy: what a customer writes is text, however it is spelt, and however long."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from model.errors import ModelCorrupt, ModelUnavailable

# Of one row of the encoder, start and end included. Customers say what they want early: of the Chinese reviews 2 %
# and of BANKING77 none are longer, and the cost of attention grows with the square.
MAX_TOKENS = 256
# Characters read per token of room. Chinese has 1 to 2 a token, English 4; a text that needs more is spaces, or one
# endless word, and a megabyte of it would hold the tokenizer for seconds.
CHARACTERS_PER_TOKEN = 16
# Rows of one text read in windows: with windows of 256 tokens about 3,500 tokens, what LIMNER_MAX_TEXT_BYTES'
# default of 16 KB holds in English. Without a bound one text could fill the encoder for seconds.
MAX_WINDOWS = 16
# Share of a window that repeats the end of the one before, so that no sentence is read only in halves.
WINDOW_OVERLAP = 1 / 8

LongTexts = Literal["head", "head+tail", "windows"]
Ids = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Tokens:
    """Rows of token ids, end to end: `ids` int32 [tokens], `lengths` int32 [rows].

    A text is one row, but where long texts are read in windows; then `rows_of` int32 [texts] counts each text's
    rows (None: one each). Iterating gives the rows.
    """

    ids: Ids
    lengths: Ids
    rows_of: Ids | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[Ids]:
        return iter(np.split(self.ids, np.cumsum(self.lengths)[:-1])) if len(self.lengths) else iter(())

    def take(self, rows: NDArray[np.intp]) -> Tokens:
        """Those rows, in that order, as rows of their own."""
        lengths = self.lengths[rows]
        ends = np.cumsum(lengths)
        starts = np.cumsum(self.lengths)[rows] - lengths
        return Tokens(self.ids[np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + lengths, lengths)],
                      lengths)  # fmt: skip


class TokenReader:
    """The tokenizer of a model folder, set to read control tokens in a text as text. Safe to call from several threads.

    `start` and `end` are the ids that the model's template puts around a text, `control` int32 those that no text
    may hold.

    Raises:
        ModelUnavailable: the folder has no tokenizer.json, or `long_texts` is unknown.
        ModelCorrupt: the file can't be read.
    """

    def __init__(self, folder: Path, max_tokens: int, prefix: str = "", long_texts: LongTexts = "head") -> None:
        if long_texts not in get_args(LongTexts):
            raise ModelUnavailable(f"long_texts {long_texts!r} is unknown: use {', '.join(get_args(LongTexts))}")
        self.prefix = prefix
        self.long_texts = long_texts
        self.tokenizer = _read(folder)
        self.start, self.end = _frame(self.tokenizer, folder)
        self.control = _control(self.tokenizer)
        self._is_control = np.zeros(self.tokenizer.get_vocab_size() + 1, bool)
        self._is_control[self.control] = True
        self._blank = self.control[0] if len(self.control) else 0
        self._room = max_tokens - len(self.start) - len(self.end)
        self._step = self._room - round(self._room * WINDOW_OVERLAP)
        rows = MAX_WINDOWS if long_texts == "windows" else 1
        self._max_characters = CHARACTERS_PER_TOKEN * self._room * rows

    def plain(self, text: str) -> str:
        """What the tokenizer is given: the model's prefix, and of a text what can matter.

        A text all in capitals, as shops print their descriptions, is read in lower case: capitals fall apart into
        letters (order lines got their department right for 70 % instead of 58 %).
        """
        limit = self._max_characters
        if len(text) > limit:
            text = f"{text[: limit // 2]} {text[-limit // 2 :]}" if self.long_texts == "head+tail" else text[:limit]
        return self.prefix + (text.lower() if text.isupper() else text)

    def read(self, texts: Sequence[str]) -> Tokens:
        """Token ids of each text with prefix, start and end, in rows of at most `max_tokens`.

        "</s>" or "[SEP]" written by a customer becomes plain tokens, never a control token.
        """
        rows = [encoding.ids for encoding in self._encode([self.plain(text) for text in texts])]
        lengths = np.fromiter(map(len, rows), np.int32, len(rows))
        ids = np.fromiter(chain.from_iterable(rows), np.int32, int(lengths.sum()))
        ids, lengths = self._without_control(ids, lengths)
        if not self.start and not self.end and not lengths.all():  # a model sees something even of an empty text
            empty = np.flatnonzero(lengths == 0)
            ids = np.insert(ids, (np.cumsum(lengths) - lengths)[empty], self._blank)
            lengths[empty] = 1
        rows_of = None
        if (lengths > self._room).any():
            ids, lengths, rows_of = self.shortened(ids, lengths)
        return Tokens(*self._framed(ids, lengths), rows_of)

    def _encode(self, plain: list[str]) -> list[Encoding]:
        try:
            return self.tokenizer.encode_batch_fast(plain, add_special_tokens=False)
        except TypeError:  # half of a surrogate pair, as a cut JSON string leaves it
            whole = [text.encode("utf-8", "replace").decode() for text in plain]
            return self.tokenizer.encode_batch_fast(whole, add_special_tokens=False)

    def _without_control(self, ids: Ids, lengths: Ids) -> tuple[Ids, Ids]:
        """Where control tokens are ordinary pieces of the vocabulary (SentencePiece), reading them as text is not
        enough: they are dropped."""
        unwanted = self._is_control[ids]
        if not unwanted.any():
            return ids, lengths
        dropped = np.bincount(np.repeat(np.arange(len(lengths)), lengths)[unwanted], minlength=len(lengths))
        return ids[~unwanted], lengths - dropped.astype(np.int32)

    def shortened(self, ids: Ids, lengths: Ids) -> tuple[Ids, Ids, Ids | None]:
        """The same with texts longer than the room cut or in windows, by the policy."""
        room = self._room
        rows: list[Ids] = []
        rows_of = np.ones(len(lengths), np.int32)
        for index, row in enumerate(Tokens(ids, lengths)):
            if len(row) <= room or self.long_texts == "head":
                rows.append(row[:room])
            elif self.long_texts == "head+tail":
                rows.append(np.concatenate([row[: room - room // 2], row[-(room // 2) :]]))
            else:
                starts = range(0, len(row) - room + self._step, self._step)[:MAX_WINDOWS]
                rows += [row[start : start + room] for start in starts]
                rows_of[index] = len(starts)
        return (
            np.concatenate(rows),
            np.fromiter(map(len, rows), np.int32, len(rows)),
            rows_of if self.long_texts == "windows" else None,
        )

    def _framed(self, ids: Ids, lengths: Ids) -> tuple[Ids, Ids]:
        """With the start and end ids around each row."""
        framed = lengths + np.int32(len(self.start) + len(self.end))
        ends = np.cumsum(framed)
        out = np.empty(ends[-1] if len(ends) else 0, np.int32)
        inside = np.ones(len(out), bool)
        for offset, token in enumerate(self.start):
            places = ends - framed + offset
            out[places], inside[places] = token, False
        for offset, token in enumerate(reversed(self.end)):
            places = ends - 1 - offset
            out[places], inside[places] = token, False
        out[inside] = ids
        return out, framed


def _read(folder: Path) -> Tokenizer:
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ModelUnavailable(f"{folder} is not a model folder: it has no tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the Rust side raises bare Exception
        raise ModelCorrupt(f"{file} can't be read: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _frame(tokenizer: Tokenizer, folder: Path) -> tuple[list[int], list[int]]:
    """The ids that the template puts before and after a text; either may be none."""
    framed = tokenizer.encode("a")
    inside = [place for place, special in enumerate(framed.special_tokens_mask) if not special]
    if not inside:
        raise ModelCorrupt(f"{folder / 'tokenizer.json'} reads the letter a as nothing: it is not whole")
    return framed.ids[: inside[0]], framed.ids[inside[-1] + 1 :]


def _control(tokenizer: Tokenizer) -> Ids:
    """Ids that no text may hold."""
    added = tokenizer.get_added_tokens_decoder().items()
    unknown = getattr(tokenizer.model, "unk_token", None)
    ids = [id_ for id_, token in added if token.special and token.content not in (unknown, "<unk>", "[UNK]")]
    return np.array(sorted(ids), np.int32)
