"""Examples as text, with the scored window in characters: what a server can be asked about.

A server cuts text into tokens of its own. So a window that was chosen in our tokens becomes a
stretch of characters, and of the server's tokens those belong to it whose first character lies in
it. A token that begins before the window is context, even if it reaches into it; the text sent
ends with the window, so none reaches out of it. That rule sees characters only: never where an
example stood in training. Sends nothing, and knows no server.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workbench.errors import InputError, optional_libraries
from workbench.scorers.scorer import Encoded, check_window
from workbench.transcript import Transcript

__all__ = ["Passages", "ids_of", "passages_of", "token_starts", "tokenizer_hash"]

Ints = NDArray[np.int64]

BETWEEN_WORDS = re.compile(r"(?<=\S)\s+(?=\S)")
BYTES_FORM = re.compile(r"bytes:((?:\\x[0-9a-fA-F]{2})+)")
ONE_BYTE = re.compile(r"<0x([0-9a-fA-F]{2})>")
LONGEST_CHARACTER = 4  # bytes of UTF-8
UNREADABLE = "\ufffd"
MOST_MARKS = 2  # of beginning, before a text's first token


@dataclass(frozen=True)
class Passages(Encoded):
    r"""Examples as characters: `token_ids` holds code points, `starts` counts characters.

    Attributes
    ----------
    cuts : list of ndarray of int64
        Per row, the characters of the scored window at which a token begins (a word, if no
        tokenizer is named): the places where a continuation can be asked for, each after at least
        one character.
    ids : list of ndarray of int64, optional
        Per row, our tokenizer's ids up to the end of the window.
    first_ids : ndarray of int64, optional
        Per row, the first scored one of them.
    cut_ids : list of ndarray of int64, optional
        Per row, which of `ids` begins at each of its cuts.
    weights : list of ndarray of float64, optional
        Per row, how much is to be learnt at each of its cuts; see `SampledScorer`.

    Examples
    --------
    >>> p = passages_of(Transcript.from_arrays([0], texts=["to be or not"]))
    >>> p.text(0), int(p.starts[0]), p.cuts[0].tolist()
    ('to be or not', 0, [2, 5, 8])
    """

    exact: bool = False
    cuts: list[Ints] = field(default_factory=list)
    ids: list[Ints] | None = None
    first_ids: Ints | None = None
    cut_ids: list[Ints] | None = None
    weights: list[NDArray[np.float64]] | None = None

    def text(self, row: int) -> str:
        """Text of a row, up to the end of its window."""
        return "".join(map(chr, self.row(row)))

    def continuation(self, row: int, cut: int) -> str:
        """The true text after a cut, to the end of the window."""
        return self.text(row)[cut:]


def passages_of(
    transcript: Transcript,
    tokenizer: str | Path | None = None,
    prefix: int = 0,
    length: int | None = None,
) -> Passages:
    """A transcript's examples as text with their windows.

    Parameters
    ----------
    transcript : Transcript
        Text, or token ids with the tokenizer that made them.
    tokenizer : str or Path, optional
        Folder or hub id. Needed for token ids, and for a window, which counts its tokens.
    prefix, length : int, optional
        The window, as for every scorer.

    Returns
    -------
    Passages

    Raises
    ------
    InputError
        Content or tokenizer is missing, text is empty, or nothing is in the window.
    """
    check_window(prefix, length)
    where = transcript.source
    if transcript.kind == "none":
        raise InputError(
            f"{where} has no token ids and no text to send: name the column with tokens= or text="
        )
    if tokenizer is None:
        if transcript.kind == "tokens":
            raise InputError(
                f"{where} holds token ids, and a server takes them or their text only with the "
                "tokenizer that made them: name it with tokenizer=, or name the text column"
            )
        if prefix or length is not None:
            raise InputError(
                "prefix and length count tokens: name with tokenizer= the tokenizer whose tokens "
                "are meant, or leave them out"
            )
        texts = transcript.texts()
        _check_some_text(texts, transcript)
        return _packed(texts, np.zeros(len(texts), np.int64), [_word_starts(t) for t in texts])
    cut = _tokenizer(tokenizer)
    if transcript.kind == "tokens":
        ids = transcript.tokens()
        _check_vocabulary(ids, len(cut), transcript, tokenizer)
        texts, spans = _decoded(cut, ids)
    else:
        texts = transcript.texts()
        _check_some_text(texts, transcript)
        ids, spans = _cut(cut, texts)
    sent, starts, cuts, cut_ids, kept, first = [], [], [], [], [], []
    for number, (text, row, span) in enumerate(zip(texts, ids, spans, strict=True)):
        end = row.size if length is None else min(row.size, prefix + length)
        if prefix >= end:
            raise InputError(
                f"{where}: row {transcript.rows[number]} has {row.size} tokens, none in the window "
                f"of prefix {prefix}, length {length}: choose a smaller prefix, or take out the row"
            )
        # tokens that are parts of one character end together: the window ends with the character
        until = int(span[end - 1, 1])
        begin = int(span[prefix, 0])
        sent.append(text[:until])
        starts.append(begin)
        own, token = np.unique(span[prefix:end, 0], return_index=True)
        possible = (own > 0) & (own >= begin) & (own < until)
        cuts.append(own[possible])
        cut_ids.append((token[possible] + prefix).astype(np.int64))
        kept.append(row[:end])
        first.append(prefix)
    short = next((i for i, text in enumerate(sent) if len(text) <= max(starts[i], 1)), None)
    if short is not None:
        raise InputError(
            f"{where}: row {transcript.rows[short]} has too little text in the window of prefix "
            f"{prefix}, length {length}: choose a smaller prefix, or take out the row"
        )
    packed = _packed(sent, np.array(starts, np.int64), cuts)
    return Passages(
        packed.token_ids,
        packed.offsets,
        packed.starts,
        cuts=cuts,
        ids=kept,
        first_ids=np.array(first, np.int64),
        cut_ids=cut_ids,
    )


def ids_of(texts: Sequence[str], tokenizer: str | Path) -> list[Ints]:
    """Token ids of texts, without marks of beginning or end."""
    return _cut(_tokenizer(tokenizer), texts)[0]


def token_starts(
    text: str, tokens: Sequence[str], generated: int = 0, marks: int = MOST_MARKS
) -> Ints:
    r"""Where a server's tokens begin in the text that it was sent.

    Tokens are matched one after another against the text itself, because the offsets that servers
    give count pieces of characters as they please. Understood are plain text, marked spaces
    (``▁``, ``Ġ``), single bytes (``<0xE2>``, ``bytes:\xe2``), tokens that are part of a character
    (shown as U+FFFD, as nothing until it is complete, or never), and marks before the text begins.

    Parameters
    ----------
    text : str
        As sent.
    tokens : sequence of str
        As answered; what was generated may follow.
    generated : int
        Most tokens that were generated.
    marks : int
        Most tokens before the text begins.

    Returns
    -------
    ndarray of int64
        For each token of the text the character in which it begins; -1 for a mark before it.
        Generated tokens are left out.

    Raises
    ------
    ValueError
        The tokens are not those of this text.

    Examples
    --------
    >>> token_starts("be or", ["<s>", "▁be", " or", " not"], generated=1).tolist()
    [-1, 0, 2]
    >>> token_starts("é!", ["\ufffd", "\ufffd", "!"]).tolist()
    [0, 0, 1]
    """
    # A server shows all its tokens in one way. The text may hold the letters that stand for bytes,
    # so the plain reading comes first; one that takes tokens for marks may have misread letters.
    found: list[Ints] = []
    refused: list[ValueError] = []
    for letters in (False, True):
        try:
            found.append(_token_starts(text, tokens, generated, marks, letters))
        except ValueError as error:
            refused.append(error)
        if found and (found[0] >= 0).all():
            break
    if not found:
        raise refused[0]
    return min(found, key=lambda starts: int((starts < 0).sum()))


def _token_starts(
    text: str, tokens: Sequence[str], generated: int, marks: int, letters: bool
) -> Ints:
    data = text.encode()
    at, starts, pieces, begun = 0, [], 0, False  # starts in bytes
    for token in tokens:
        if at == len(data) and begun and not pieces:
            break
        forms = _forms(token, first=not begun and marks > 0, letters=letters)
        found = next((form for form in forms if data.startswith(form, at)), None)
        if found is None and pieces:
            # each border between these tokens may lie within a character
            limit = at + LONGEST_CHARACTER * (pieces + 1) + len(token.encode())
            for form in forms if token != UNREADABLE else ():
                place = data.find(form, at, limit)
                if place >= 0:
                    starts.extend(_spread(at, place, pieces))
                    at, pieces, found = place, 0, form
                    break
        elif found is None and begun and data[at : at + 1] >= b"\x80":
            # one character ends the token before and begins this one, and neither shows its part
            beyond = at + _size_of_character(data, at)
            found = next((form for form in forms if data.startswith(form, beyond)), None)
            if found is not None:
                starts.append(at)
                at = beyond + len(found)
                continue
        if found is not None:
            starts.extend([at] * pieces)  # shown as nothing until the character was complete
            starts.append(at)
            at, pieces, begun = at + len(found), 0, True
        elif token == "" or UNREADABLE in token:
            pieces += 1
        elif not begun and len(starts) + pieces < marks:
            starts.extend([-1] * (pieces + 1))
            pieces = 0
        else:
            break
    if pieces and len(data) - at <= LONGEST_CHARACTER * pieces:
        # the text ends in pieces of a character, and what was generated may be among them
        starts.extend(_spread(at, len(data), max(1, pieces)))
        at = len(data)
        starts = starts[: len(tokens) - generated] if len(starts) == len(tokens) else starts
    if at != len(data):
        raise ValueError(
            f"its tokens make {data[:at].decode(errors='replace')[-20:]!r} of the text"
        )
    if len(tokens) - len(starts) > generated:
        raise ValueError(f"{len(tokens) - len(starts)} of its tokens come after the text's end")
    return _characters(data, np.array(starts, np.int64))


def _forms(token: str, first: bool, letters: bool) -> list[bytes]:
    """The byte strings that a token as shown may stand for, likeliest first."""
    listed = BYTES_FORM.fullmatch(token)
    if listed:
        return [bytes.fromhex(listed[1].replace("\\x", ""))]
    if token == "":
        return []
    forms = [token.encode()]
    if UNREADABLE in token:
        return forms  # the text itself may hold this character
    single = ONE_BYTE.fullmatch(token)
    if single:
        forms.append(bytes.fromhex(single[1]))
    if "▁" in token:
        spaced = token.replace("▁", " ")
        forms += (
            [spaced.encode(), spaced.removeprefix(" ").encode()] if first else [spaced.encode()]
        )
    if letters and all(letter in BYTE_OF_LETTER for letter in token):
        forms.append(bytes(BYTE_OF_LETTER[letter] for letter in token))
    if first:  # shown alone, a token may lose or gain the space before it
        forms += [b" " + token.encode(), token.removeprefix(" ").encode()]
    return [form for form in dict.fromkeys(forms) if form]


def _byte_letters() -> dict[str, int]:
    """The printable letters by which byte-level tokenizers show bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    letters = {chr(byte): byte for byte in plain}
    return letters | {chr(256 + number): byte for number, byte in enumerate(others)}


BYTE_OF_LETTER = _byte_letters()


def _size_of_character(data: bytes, at: int) -> int:
    """Bytes of the character that begins at a place."""
    end = at + 1
    while end < len(data) and data[end] & 0xC0 == 0x80:
        end += 1
    return end - at


def _spread(start: int, stop: int, pieces: int) -> list[int]:
    """Pieces of characters, spread evenly over the bytes that they make together."""
    return [start + number * (stop - start) // pieces for number in range(pieces)]


def _characters(data: bytes, starts: Ints) -> Ints:
    """Character in which each byte lies; -1 stays."""
    leads = (np.frombuffer(data, np.uint8) & 0xC0) != 0x80
    index = np.append(np.cumsum(leads) - 1, leads.sum()).astype(np.int64)
    return np.where(starts < 0, -1, index[np.maximum(starts, 0)])


def _packed(texts: Sequence[str], starts: Ints, cuts: list[Ints]) -> Passages:
    points = [np.array([*map(ord, text)], dtype=np.int64) for text in texts]
    offsets = np.concatenate([[0], np.cumsum([p.size for p in points])]).astype(np.int64)
    return Passages(np.concatenate(points), offsets, starts, cuts=cuts)


def _word_starts(text: str) -> Ints:
    """Where words begin, the space before each counted to it; never at the text's beginning."""
    return np.array([found.start() for found in BETWEEN_WORDS.finditer(text)], dtype=np.int64)


def _check_some_text(texts: Sequence[str], transcript: Transcript) -> None:
    empty = next((i for i, text in enumerate(texts) if len(text) < 2), None)
    if empty is not None:
        raise InputError(
            f"{transcript.source}: row {transcript.rows[empty]} has fewer than two characters, "
            "which no server can score: take it out"
        )


def _check_vocabulary(
    rows: Sequence[Ints], size: int, transcript: Transcript, tokenizer: str | Path
) -> None:
    for number, row in enumerate(rows):
        if row.size and (int(row.max()) >= size or int(row.min()) < 0):
            worst = int(row[(row >= size) | (row < 0)][0])
            raise InputError(
                f"{transcript.source}: row {transcript.rows[number]} has token id {worst}, outside "
                f"the vocabulary of {tokenizer} ({size:,} ids): name the tokenizer that made them"
            )


def _tokenizer(name: str | Path) -> Any:
    _libraries()
    from workbench.scorers.tokenise import fast_tokenizer

    return fast_tokenizer(name)


def _cut(tokenizer: Any, texts: Sequence[str]) -> tuple[list[Ints], list[Ints]]:
    """Token ids of texts, and per token its first character and the one after its last."""
    from workbench.scorers.tokenise import cut_with_spans

    ids, spans = cut_with_spans(tokenizer, texts)
    for span in spans:
        if len(span):  # some tokenizers leave the space before a word out of its token's span
            before = np.concatenate([[0], span[:-1, 1]])
            span[:, 0] = np.minimum(span[:, 0], before)
            inside = span[:, 1] == before  # a further part of the same character
            span[inside, 0] = np.maximum(span[inside, 1] - 1, 0)
    return ids, spans


def _decoded(tokenizer: Any, rows: Sequence[Ints]) -> tuple[list[str], list[Ints]]:
    """Texts of token ids, and per token its span of characters."""
    texts = [_decode(tokenizer, row) for row in rows]
    again, spans = _cut(tokenizer, texts)
    for number, (row, other) in enumerate(zip(rows, again, strict=True)):
        if not np.array_equal(row, other):  # another way of cutting the same text: ask step by step
            spans[number] = _spans_by_decoding(tokenizer, row, texts[number])
    return texts, spans


def _decode(tokenizer: Any, row: Ints) -> str:
    return str(
        tokenizer.decode(
            row.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
    )


def _spans_by_decoding(tokenizer: Any, row: Ints, text: str) -> Ints:
    """Spans of tokens from the text of ever longer beginnings."""
    ends = []
    for size in range(1, row.size + 1):
        part = _decode(tokenizer, row[:size])
        # an incomplete character at the end shows as U+FFFD: it is not there yet
        whole = part if text.startswith(part) else part.rstrip(UNREADABLE)
        ends.append(min(len(whole), len(text)))
    until = np.maximum.accumulate(np.array(ends, dtype=np.int64))
    until[-1] = len(text)
    begin = np.concatenate([[0], until[:-1]])
    # a token that ends inside a character covers that character
    return np.column_stack([begin, np.maximum(until, np.minimum(begin + 1, len(text)))])


def tokenizer_hash(name: str | Path) -> str:
    """SHA-256 of a tokenizer's files.

    Raises
    ------
    InputError
        No tokenizer there, or no library to read one.
    """
    _libraries()
    from workbench.models.checkpoint import tokenizer_folder, tokenizer_sha256_of

    sha256 = tokenizer_sha256_of(tokenizer_folder(name))
    if sha256 is None:
        raise InputError(f"{name} has no tokenizer: name a folder or hub id that has one")
    return sha256


def _libraries() -> None:
    with optional_libraries():
        import workbench.scorers.tokenise  # noqa: F401
