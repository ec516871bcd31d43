"""Transcript: training examples in training order, and what was shuffled.

Reads tables, finds positions, blocks, units and exposures, hashes the content. Does not know any
model, and never sorts: row order is the file's. Scorers see examples only, never positions.
"""

import hashlib
import html
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from numpy.typing import ArrayLike, NDArray
from pydantic import TypeAdapter, ValidationError

from workbench.errors import InputError
from workbench.home import content_key
from workbench.null import log10_normal_tail
from workbench.order_checks import correlation_of_neighbours, split_unit
from workbench.parquet import scan_options, write_parquet
from workbench.ranges import AT_LEAST_0, AT_LEAST_1, SEED, SEED_BITS, SETTINGS, SHUFFLE_SEED
from workbench.shufflers import SHUFFLERS, KnownShuffle
from workbench.statistics.rank import RankDesign
from workbench.tables import (
    array_of,
    column_of,
    complete,
    find_column,
    flatten_lists,
    is_list_type,
    is_text_type,
    is_token_type,
    open_table,
    present,
    reading,
    table_name,
    values_of,
    with_token_lists,
)

__all__ = [
    "How",
    "OrderAccount",
    "OrderCheck",
    "Selection",
    "ShuffleClaim",
    "Transcript",
    "TranscriptDescription",
]

Ints = NDArray[np.int64]
Digests = NDArray[np.uint8]
ClaimKind = Literal[
    "public_randomness", "published_shuffler", "owner", "unknown", "natural", "not_stated"
]
How = Literal["random sample", "pilot", "plan", "design", "own design", "by hand"]

POSITION_NAMES = ("position", "index")
TOKEN_NAMES = ("tokens", "input_ids", "token_ids")
LABELS = ("block", "unit", "exposures")
DIGEST_BYTES = 16
# Where a table's schema keeps what is known of its order (`OrderAccount`).
ORDER_KEY = b"palimpsest order"


@dataclass(frozen=True)
class ShuffleClaim:
    """How the order is said to have come about; the evidence rests on it.

    Attributes
    ----------
    kind : str
        ``public_randomness``: the seed is `Shuffler.public_seed` of randomness that came out after
        the data set's hash. ``published_shuffler``: a named shuffler made the order of a published
        data set; the p-value counts times its seeds. Both are verified where the shuffler makes
        this very order again (`workbench.known_order`). ``owner``: the owner says that
        it was shuffled at random. ``unknown`` and ``natural``: no claim of a random order; no
        verdict can rest on it. ``not_stated``: nobody has said yet; a test is not valid until
        somebody does.
    seed : int, optional
        The shuffle's seed, if known: flagged when it is a habitual one.
    seed_bits : int, optional
        Bits of the seed space, 1 to 512; a named shuffler's own count at least.
    shuffler_settings : int
        Number of settings of the shuffler that could have been chosen.
    source : str
        Where the claim can be checked.
    shuffler : str
        Name in `workbench.shufflers.SHUFFLERS`.
    size : int, optional
        Examples of the whole data set that was shuffled.
    first_epoch : int
        Of the shuffler; blocks are this epoch and those after it.
    batch_size : int
        Examples per training step where positions are steps.
    data_sha256 : str
        Of the data set: its rows' `Transcript.examples_fingerprint`; or where a column `example`
        numbers the examples of several files, the digest of their list.
    randomness, beacon_round : str
        Of ``public_randomness``: what came out, as printed, and when or in which round of what.

    Raises
    ------
    InputError
        Unknown kind or shuffler, settings out of range, or ``published_shuffler`` with neither
        `shuffler` nor `seed_bits`.

    Examples
    --------
    >>> claim = ShuffleClaim("published_shuffler", seed=77123, shuffler="olmo", size=6)
    >>> claim.known(1).places(77123)[0], round(claim.log10_orders, 2)
    (array([3, 5, 2, 4, 0, 1]), 9.63)
    """

    kind: ClaimKind = "not_stated"
    seed: int | None = None
    seed_bits: int | None = None
    shuffler_settings: int = 1
    source: str = ""
    shuffler: str = ""
    size: int | None = None
    first_epoch: int = 0
    batch_size: int = 1
    data_sha256: str = ""
    randomness: str = ""
    beacon_round: str = ""

    def __post_init__(self) -> None:
        kinds = get_args(ClaimKind)
        if self.kind not in kinds:
            raise InputError(
                f"shuffle claim {self.kind!r} is unknown: use one of {', '.join(kinds)}"
            )
        SHUFFLE_SEED.check(self.seed, "seed of the shuffle")
        SEED_BITS.check(self.seed_bits, "seed_bits of the shuffle")
        SETTINGS.check(self.shuffler_settings, "shuffler_settings")
        AT_LEAST_1.check(self.size, "size of the shuffle")
        AT_LEAST_1.check(self.batch_size, "batch_size of the shuffle")
        AT_LEAST_0.check(self.first_epoch, "first_epoch of the shuffle")
        if self.shuffler:
            self.known(1)
        elif self.kind == "published_shuffler" and self.seed_bits is None:
            raise InputError(
                "a published shuffler needs its name (shuffler=) or seed_bits, the size of the "
                "seed space: without them the p-value cannot be corrected for a chosen seed"
            )

    def known(self, blocks: int) -> KnownShuffle:
        """The shuffle that is claimed, of so many epochs; its seed is 0 where none is known.

        Raises
        ------
        InputError
            As for `KnownShuffle`.
        """
        seed, bits, rule = self.seed, self.seed_bits, SHUFFLERS.get(self.shuffler)
        if rule is not None:
            bits = max(rule.seed_bits, bits or 1)
            if self.kind == "public_randomness":
                seed = rule.public_seed(self.randomness, self.data_sha256)
        return KnownShuffle(
            self.shuffler,
            seed or 0,
            self.size or 0,
            range(self.first_epoch, self.first_epoch + blocks),
            self.batch_size,
            seed_bits=bits,
        )

    @property
    def log10_orders(self) -> float:
        """log10 of the number of orders that its maker could have chosen from, as far as known.

        Seeds, settings and epochs up to the first; without a choice of seed, by public randomness.
        """
        bits = 0
        if self.kind == "published_shuffler":
            bits = self.known(1).bits if self.shuffler else self.seed_bits or 0
        others = self.shuffler_settings * (self.first_epoch + 1)
        return float(bits * np.log10(2) + np.log10(others))

    @classmethod
    def of(cls, given: "ShuffleClaim | str | None", **further: Any) -> "ShuffleClaim":
        """A claim, one of this kind, or the one in a JSON file; not stated for None.

        Parameters
        ----------
        given : ShuffleClaim, str or None
            What ends in ``.json`` is a file with an object of the attributes.
        further : object
            Attributes besides; None for what is not known.

        Raises
        ------
        InputError
            As for the claim itself; a file that holds none.

        Examples
        --------
        >>> str(ShuffleClaim.of("owner")), str(ShuffleClaim.of(None))
        ('owner', 'not stated')
        """
        known = {name: value for name, value in further.items() if value is not None}
        if isinstance(given, ShuffleClaim):
            return replace(given, **known)
        if given is None or not given.endswith(".json"):
            return cls(cast(ClaimKind, given or "not_stated"), **known)
        try:
            written = Path(given).read_text(encoding="utf-8")
            claim = TypeAdapter(cls).validate_json(written, strict=True)
            wrong = json.loads(written).keys() - {f.name for f in fields(cls)}
        except (OSError, ValueError) as error:
            why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            raise InputError(
                f"{given} is no shuffle claim ({why}): write a JSON object "
                f"of {', '.join(f.name for f in fields(cls))}"
            ) from error
        if wrong:
            raise InputError(f"{given}: a shuffle claim has no {min(wrong)}: correct the name")
        return replace(claim, **known)

    def over(self, written: "ShuffleClaim | None") -> "ShuffleClaim":
        """The claim, completed from the one that the file of the examples holds.

        What the file says otherwise is kept as part of the source, so that evidence shows both.

        Examples
        --------
        >>> str(ShuffleClaim().over(ShuffleClaim("natural")))
        'natural'
        >>> ShuffleClaim("owner").over(ShuffleClaim("natural")).source
        'the file says natural'
        """
        if written is None:
            return self
        default = ShuffleClaim()
        own = {
            f.name: value
            for f in fields(self)
            if (value := getattr(self, f.name)) != getattr(default, f.name)
        }
        if len({self.kind, written.kind} - {default.kind}) == 2:
            said = f"the file says {written}" + (f" ({written.source})" if written.source else "")
            own["source"] = "; ".join(filter(None, (self.source, said)))
        return replace(written, **own)

    def __str__(self) -> str:
        return self.kind.replace("_", " ")

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


# What rests on the caller's word, the less known way higher; in all others a known rule chose.
_ON_WORD = {"own design": 1, "by hand": 2}


@dataclass(frozen=True)
class Selection:
    """How the examples of a transcript were chosen from more; evidence says it.

    Attributes
    ----------
    how : str
        ``random sample``: drawn by a seed (`Transcript.subsample`). ``pilot``, ``plan``: what a
        plan looked at, and what it left to be tested. ``design``: by windows and a filter that go
        by their names or were learned on another order; ``own design``: by any other. ``by hand``:
        rows that the caller gave (`Transcript.take`).
    of : int
        Examples that there were before anything was chosen.
    seed : int, optional
        Of the draw, where it was chosen and not derived from the examples.

    Raises
    ------
    InputError
        Unknown way of choosing.
    """

    how: How
    of: int
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.how not in get_args(How):
            raise InputError(
                f"a selection {self.how!r} is unknown: use one of {', '.join(get_args(How))}"
            )

    def after(self, earlier: "Selection | None") -> "Selection":
        """What is to be said of a part of a part: the choice of which less is known.

        Examples
        --------
        >>> Selection("random sample", 50, seed=3).after(Selection("by hand", 400))
        Selection(how='by hand', of=400, seed=None)
        """
        if earlier is None:
            return self
        weaker = _ON_WORD.get(earlier.how, 0) > _ON_WORD.get(self.how, 0)
        return replace(earlier if weaker else self, of=earlier.of)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)


@dataclass(frozen=True)
class OrderAccount:
    """What is known of an order besides its columns: it travels in the metadata of a table.

    Attributes
    ----------
    rows : int
        Examples that were written; where there are fewer, somebody took the others out.
    claim : ShuffleClaim
    selection : Selection or None
    """

    rows: int
    claim: ShuffleClaim
    selection: Selection | None = None

    def metadata(self) -> dict[bytes, bytes]:
        """For the schema of an Arrow table."""
        return {ORDER_KEY: TypeAdapter(OrderAccount).dump_json(self)}

    @classmethod
    def of(cls, schema: pa.Schema, rows: int, source: str) -> "OrderAccount | None":
        """What a table of so many rows holds of it; None without an account of these rows.

        Raises
        ------
        InputError
            It is damaged.
        """
        text = (schema.metadata or {}).get(ORDER_KEY)
        if text is None:
            return None
        try:
            found = TypeAdapter(cls).validate_json(text, strict=True)
        except (ValidationError, InputError) as error:
            raise InputError(
                f"{source}: what it says of its order (metadata {ORDER_KEY.decode()!r}) is "
                "damaged: write it again, or remove the metadata"
            ) from error
        if rows >= found.rows:  # with rows added it is another table
            return found if rows == found.rows else None
        return replace(found, selection=Selection("by hand", found.rows).after(found.selection))


@dataclass(frozen=True)
class OrderCheck:
    """One feature of the examples against the order: a random order is unrelated to all of them.

    Attributes
    ----------
    feature : str
    correlation : float
        Of the feature's rank with position; or, where `neighbours` is set, of the ranks of units
        that were trained one right after the other.
    log10_pvalue : float
        Two-sided, asymptotic.
    neighbours : bool
    """

    feature: str
    correlation: float
    log10_pvalue: float
    neighbours: bool = False

    @property
    def relation(self) -> str:
        """What was found, as the beginning of a sentence."""
        if self.neighbours:
            return f"examples trained one after the other are alike in {self.feature}, correlation"
        return f"position and {self.feature} have the correlation"


@dataclass(frozen=True, repr=False)
class TranscriptDescription:
    """What `Transcript.describe` found; prints as text and as HTML."""

    n: int
    kind: str
    first_position: int
    last_position: int
    tied_rows: int
    blocks: int
    units: int | None
    largest_unit: int
    exposure_groups: int
    duplicate_rows: int | None
    shortest: int | None
    longest: int | None
    looks_unshuffled: bool
    order_checks: tuple[OrderCheck, ...]
    shuffle: ShuffleClaim
    notes: tuple[str, ...] = ()

    def rows(self) -> list[tuple[str, str]]:
        """Label and value of each line."""
        pieces = "tokens" if self.kind == "tokens" else "characters"
        span = f"{self.shortest} to {self.longest} {pieces}"
        length = "unknown" if self.shortest is None else span
        unit = (
            "each example moved alone"
            if self.units is None
            else f"{self.units:,}, up to {self.largest_unit:,} examples each"
        )
        duplicates = "unknown" if self.duplicate_rows is None else f"{self.duplicate_rows:,}"
        lines = [
            ("examples", f"{self.n:,} ({self.kind})"),
            ("positions", f"{self.first_position:,} to {self.last_position:,}"),
            (
                "tied positions",
                f"{self.tied_rows:,} examples share a position with another",
            ),
            ("blocks", f"{self.blocks:,}"),
            ("units", unit),
            ("exposure groups", f"{self.exposure_groups:,}"),
            ("duplicates", f"{duplicates} examples repeat an earlier one"),
            ("length", length),
            (
                "order",
                "looks UNSHUFFLED" if self.looks_unshuffled else "nothing unusual found",
            ),
        ]
        for check in self.order_checks:
            lines.append(
                (
                    f"· {'neighbours, by' if check.neighbours else 'position and'} {check.feature}",
                    f"correlation {check.correlation:+.3f}, log10 p {check.log10_pvalue:.1f}",
                )
            )
        lines.append(("shuffle claim", str(self.shuffle)))
        lines.extend(("note", note) for note in self.notes)
        return lines

    def __str__(self) -> str:
        return "\n".join(f"{label:<34} {value}" for label, value in self.rows())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        body = "".join(
            f"<tr><th scope='row' style='text-align:left'>{html.escape(label)}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for label, value in self.rows()
        )
        return f"<table><caption>Transcript</caption><tbody>{body}</tbody></table>"


# Below this (corrected for the number of features) an order is called unshuffled. A random order
# fails the check once in a thousand transcripts.
UNSHUFFLED_PVALUE = 1e-3


@dataclass(frozen=True)
class Transcript:
    """Training examples with their training positions, and what moved when they were shuffled.

    Make one with `read` (a file, a folder or a data set) or `from_arrays`. Row order is kept as
    given; it plays no part in any test.

    Attributes
    ----------
    positions : ndarray of int64, shape (n,)
        Training position (step or index); equal positions are ties.
    strata : ndarray of int64, shape (n,)
        Code of block × exposure count: positions are permuted only within one.
    units : ndarray of int64 or None, shape (n,)
        Examples of equal code in a stratum moved as one piece.
    kind : {"tokens", "text", "none"}
        What the examples are; "none" when only positions (and digests) are known.
    shuffle : ShuffleClaim
        How the order is said to have come about.
    source : str
        Where it was read from, for messages.
    rows : ndarray of int64, shape (n,)
        Row numbers in the source (0-based), for messages and subsets.
    selection : Selection or None
        How the examples were chosen from more; None for all that the source holds.

    Examples
    --------
    >>> t = Transcript.from_arrays([2, 0, 1], texts=["later", "first", "between"])
    >>> t.n, t.kind
    (3, 'text')
    """

    positions: Ints
    strata: Ints
    units: Ints | None
    kind: Literal["tokens", "text", "none"]
    shuffle: ShuffleClaim
    source: str
    rows: Ints = field(repr=False)
    blocks: int
    exposure_groups: int
    _data: "pa.Table | pads.Dataset | None" = field(repr=False)
    _content: str | None = field(repr=False)
    _digest_column: Digests | None = field(repr=False, default=None)
    selection: Selection | None = field(repr=False, default=None)
    _named: Mapping[str, str] = field(repr=False, default_factory=dict)

    # ------------------------------------------------------------------ making one

    @classmethod
    def from_arrays(
        cls,
        positions: ArrayLike,
        *,
        tokens: Sequence[ArrayLike] | NDArray[Any] | None = None,
        texts: Sequence[str] | None = None,
        blocks: ArrayLike | None = None,
        units: ArrayLike | None = None,
        exposures: ArrayLike | None = None,
        digests: Digests | None = None,
        columns: Mapping[str, Any] | None = None,
        shuffle: ShuffleClaim | str | None = None,
        source: str = "arrays",
    ) -> "Transcript":
        """Build a transcript from arrays that are at hand.

        Parameters
        ----------
        positions : array_like of int, shape (n,)
            Training position of each example.
        tokens : sequence of arrays of int, optional
            Token ids per example.
        texts : sequence of str, optional
            Text per example; give tokens or texts, not both.
        blocks, units, exposures : array_like, shape (n,), optional
            Labels of block (shuffled within), unit (moved as one) and exposure count (examples
            seen in several epochs are permuted only among those of the same count).
        digests : ndarray of uint8, shape (n, 16), optional
            Content digests where the content itself is not at hand.
        columns : mapping, optional
            Further columns, such as recorded losses.
        shuffle : ShuffleClaim or str, optional
            How the order came about, such as "owner" for the owner's claim that it was random.
            Without it the claim is not stated, and tests are not valid.

        Raises
        ------
        InputError
            Nothing given, lengths that differ, positions missing or not whole numbers.

        Examples
        --------
        >>> Transcript.from_arrays([0, 1], tokens=[[5, 6], [7]]).lengths
        array([2, 1])
        """
        if tokens is not None and texts is not None:
            raise InputError("both tokens and texts were given: give the one to be scored")
        position_array = whole_numbers(positions, "positions", source)
        n = len(position_array)
        table: dict[str, Any] = {}
        content: str | None = None
        if tokens is not None:
            content = "tokens"
            arrays = [array_of(row) for row in tokens]
            table[content] = _ragged(arrays, source)
        elif texts is not None:
            content = "text"
            try:
                table[content] = pa.array(list(texts), type=pa.large_string())
            except (pa.ArrowException, UnicodeEncodeError, TypeError) as error:
                row = _first_bad_text(texts)
                raise InputError(
                    f"{source}: row {row} is not text that can be written as UTF-8: repair or "
                    "remove it"
                ) from error
        for name, values in (columns or {}).items():
            table[name] = (
                values
                if isinstance(values, pa.Array | pa.ChunkedArray)
                else pa.array(array_of(values) if hasattr(values, "detach") else values)
            )
        labels = {
            role: _labels(values, role, source)
            for role, values in zip(LABELS, (blocks, units, exposures), strict=True)
            if values is not None
        }
        for role, values in labels.items():
            if role in table:
                raise InputError(f"{source}: {role}s were given twice, also as a column: give one")
            table[role] = values
        for name, values in table.items():
            if len(values) != n:
                raise InputError(
                    f"{source}: {name} has {len(values)} rows and positions have {n}: give one "
                    "of each per example"
                )
        return cls._assemble(
            position_array,
            {role: _codes(values, role, source) for role, values in labels.items()},
            pa.table(table) if table else None,
            content,
            digests,
            ShuffleClaim.of(shuffle),
            source,
            named={role: role for role in labels},
        )

    @classmethod
    def read(
        cls,
        source: Any,
        *,
        position: str | None = None,
        tokens: str | None = None,
        text: str | None = None,
        block: str | None = None,
        unit: str | None = None,
        exposures: str | None = None,
        split: str = "train",
        subset: str | None = None,
        shuffle: ShuffleClaim | str | None = None,
    ) -> "Transcript":
        """Read a transcript from a file, a folder, a table in memory or a data set by name.

        Parquet and Arrow files are read column by column, so that 10 million rows open in
        seconds; token ids are read when they are needed.

        Parameters
        ----------
        source : str, Path, pandas.DataFrame, pyarrow.Table or datasets.Dataset
            ``.parquet``, ``.jsonl``, ``.jsonl.gz``, ``.csv``, ``.csv.gz``, ``.arrow`` or
            ``.feather`` file; a folder of Parquet files or of a saved Hugging Face data set; a
            data set on the hub, as ``ID``, ``ID@REVISION``, ``ID/SUBSET`` or
            ``hf://datasets/ID[@REVISION]/PATH`` (published schema: `index`, `tokens`, optional
            `loss_*`); or a table in memory. Folders named ``block=0`` give a column `block`, and
            files named train-… and test-… are splits. The index of a DataFrame is a column if it
            has a name. In CSV token ids stand as ``"[1, 2, 3]"``, text is read as written, and an
            empty cell is missing (empty text is ``""``).
        position, tokens, text, block, unit, exposures : str, optional
            Column names. Without them `position` or `index`, `tokens`, `input_ids`, `token_ids`
            or `text`, and `block`, `unit`, `exposures` are looked for; ambiguity is an error.
        split, subset : str, optional
            Split of a Hugging Face data set; its configuration, folder or file.
        shuffle : ShuffleClaim or str, optional
            How the order came about, such as "owner" for the owner's claim that it was random.
            Without it the claim is not stated, and tests are not valid.

        Raises
        ------
        InputError
            The file is missing, truncated or empty; no position column; positions missing or not
            whole numbers; missing labels. The message names file, row and remedy.

        Examples
        --------
        >>> Transcript.read(pa.table({"position": [1, 0], "text": ["later", "first"]})).n
        2
        """
        label = table_name(source)
        usual = (*TOKEN_NAMES, "text")
        as_written = [name for name in (tokens, text, *usual) if name]
        data = open_table(source, split, as_written, subset)
        names = list(data.schema.names)
        position = find_column(names, position, POSITION_NAMES, "position", label, required=True)
        content = _find_content(names, tokens, text, label)
        if content is not None:
            if content != text and (content == tokens or content.lower() in TOKEN_NAMES):
                data = with_token_lists(data, content, label)
            kind = data.schema.field(content).type
            if not (is_token_type(kind) or is_text_type(kind)):
                raise InputError(
                    f"{label}: column {content!r} holds {kind}, neither token ids nor text: name "
                    "another with tokens= or text="
                )
        assert position is not None
        position_array = whole_numbers(present(data, position, label), position, label)
        named, coded = {"position": position}, {}
        for role, wanted in zip(LABELS, (block, unit, exposures), strict=True):
            name = find_column(names, wanted, (role,), role, label)
            if name is not None:
                named[role] = name
                coded[role] = _codes(present(data, name, label), name, label)
        digests = None
        if "digest" in names and content is None:
            digests = _digest_array(column_of(data, "digest", label), label)
        known = OrderAccount.of(data.schema, len(position_array), label)
        claim = ShuffleClaim.of(shuffle)
        return cls._assemble(
            position_array,
            coded,
            data,
            content,
            digests,
            claim if known is None else claim.over(known.claim),
            label,
            named=named,
            selection=None if known is None else known.selection,
            is_text=content is not None and is_text_type(data.schema.field(content).type),
        )

    @classmethod
    def _assemble(
        cls,
        positions: Ints,
        coded: Mapping[str, Ints],
        data: "pa.Table | pads.Dataset | None",
        content: str | None,
        digests: Digests | None,
        claim: ShuffleClaim,
        source: str,
        *,
        named: Mapping[str, str],
        selection: Selection | None = None,
        is_text: bool | None = None,
    ) -> "Transcript":
        n = len(positions)
        if n == 0:
            raise InputError(f"{source} is empty: a transcript needs at least two examples")
        block, unit, exposures = (coded.get(role) for role in LABELS)
        if digests is not None and digests.shape != (n, DIGEST_BYTES):
            raise InputError(
                f"{source}: digests have shape {digests.shape}, expected ({n}, {DIGEST_BYTES})"
            )
        strata, n_blocks, n_groups = np.zeros(n, dtype=np.int64), 1, 1
        if block is not None:
            strata, n_blocks = block, int(block.max()) + 1
        if exposures is not None:
            n_groups = int(exposures.max()) + 1
            pairs = strata * n_groups + exposures
            strata = np.unique(pairs, return_inverse=True)[1].astype(np.int64)
        if unit is not None:
            _check_units(unit, block, exposures, source)
        if is_text is None:
            is_text = content == "text"
        kind: Literal["tokens", "text", "none"] = (
            "none" if content is None else "text" if is_text else "tokens"
        )
        return cls(
            positions,
            strata,
            unit,
            kind,
            claim,
            source,
            np.arange(n, dtype=np.int64),
            n_blocks,
            n_groups,
            data,
            content,
            digests,
            selection,
            named,
        )

    # ------------------------------------------------------------------ content

    @property
    def n(self) -> int:
        """Number of examples."""
        return len(self.positions)

    def __len__(self) -> int:
        return self.n

    @property
    def columns(self) -> list[str]:
        """Names of the table's columns."""
        return [] if self._data is None else list(self._data.schema.names)

    def column(self, name: str) -> NDArray[Any] | list[Any]:
        """A column's values: an array for scalars, a list of arrays for lists.

        Raises
        ------
        InputError
            There is no such column; the message lists those that there are.
        """
        if name not in self.columns:
            known = ", ".join(self.columns) or "none"
            raise InputError(f"{self.source} has no column {name!r} (columns: {known})")
        assert self._data is not None
        values = column_of(self._data, name, self.source)
        if not self._all_rows:
            values = values.take(pa.array(self.rows))
        if is_list_type(values.type):
            complete(values, name, self.source, self.rows)
        return values_of(values)

    @property
    def _all_rows(self) -> bool:
        assert self._data is not None
        total = self._data.num_rows if isinstance(self._data, pa.Table) else self._data.count_rows()
        return bool(self.n == total and (np.diff(self.rows) == 1).all())

    def _content_chunks(self, rows: Ints | None) -> Iterator[pa.Array]:
        """Content of some rows (all, in order, if None), a chunk at a time."""
        if self._data is None or self._content is None:
            raise InputError(
                f"{self.source} has no token ids and no text, so nothing can be scored: name the "
                "column with tokens= or text=, or use recorded scores"
            )
        with reading(self._content, self.source):
            if rows is None and self._all_rows:
                if isinstance(self._data, pa.Table):
                    yield from self._data.column(self._content).chunks
                else:
                    # Without these the scanner holds whole files ahead of what is asked for.
                    options = scan_options(pre_buffer=False)
                    for batch in self._data.to_batches(
                        columns=[self._content],
                        batch_readahead=2,
                        fragment_readahead=1,
                        fragment_scan_options=options,
                    ):
                        yield batch.column(0)
                return
            wanted = self.rows if rows is None else self.rows[rows]
            for start in range(0, len(wanted), 65536):
                piece = pa.array(wanted[start : start + 65536])
                taken = (
                    self._data.select([self._content]).take(piece)
                    if isinstance(self._data, pa.Table)
                    else self._data.take(piece, columns=[self._content])
                )
                yield from taken.column(0).chunks

    def tokens(self, rows: ArrayLike | None = None) -> list[Ints]:
        """Token ids of some rows (all by default), one int64 array per example.

        Raises
        ------
        InputError
            The transcript holds text, or nothing; token ids missing, negative or fractional.
        """
        if self.kind == "text":
            raise InputError(
                f"{self.source} holds text, not token ids: it is tokenised to score it"
            )
        result: list[Ints] = []
        for chunk in self._content_chunks(None if rows is None else np.asarray(rows, np.int64)):
            self._check_present(chunk, len(result), rows)
            flat, offsets = flatten_lists(chunk)
            ids = token_ids_of(flat, offsets, self.source, len(result))
            result.extend(np.split(ids, offsets[1:-1]) if len(offsets) > 1 else [])
        return result

    def token_chunks(self) -> Iterator[tuple[NDArray[Any], Ints]]:
        """All token ids in row order, a piece at a time: flat ids and row offsets of each piece.

        Ids keep the width of the table's column where they are whole numbers there, so that a
        transcript larger than memory can be streamed.

        Yields
        ------
        flat : ndarray of integers, shape (tokens,)
        offsets : ndarray of int64, shape (rows + 1,)

        Raises
        ------
        InputError
            As for `tokens`.
        """
        if self.kind == "text":
            raise InputError(f"{self.source} holds text, and token ids are needed: tokenise it")
        done = 0
        for chunk in self._content_chunks(None):
            self._check_present(chunk, done, None)
            flat, offsets = flatten_lists(chunk)
            if flat.dtype.kind == "u" or (flat.dtype == np.int32 and flat.size and flat.min() >= 0):
                yield flat, offsets
            else:
                yield token_ids_of(flat, offsets, self.source, done), offsets
            done += len(offsets) - 1

    def texts(self, rows: ArrayLike | None = None) -> list[str]:
        """Text of some rows (all by default).

        Raises
        ------
        InputError
            The transcript holds token ids, or nothing; a row is missing.
        """
        if self.kind == "tokens":
            raise InputError(f"{self.source} holds token ids, not text")
        result: list[str] = []
        for chunk in self._content_chunks(None if rows is None else np.asarray(rows, np.int64)):
            self._check_present(chunk, len(result), rows)
            result.extend(chunk.to_pylist())
        return result

    def text_chunks(self) -> Iterator[list[str]]:
        """All texts in row order, a piece at a time, so that they need not fit the memory at once.

        Raises
        ------
        InputError
            As for `texts`.
        """
        if self.kind == "tokens":
            raise InputError(f"{self.source} holds token ids, not text")
        done = 0
        for chunk in self._content_chunks(None):
            self._check_present(chunk, done, None)
            yield chunk.to_pylist()
            done += len(chunk)

    def _check_present(self, chunk: pa.Array, done: int, rows: ArrayLike | None) -> None:
        with reading(self._content or "", self.source):
            chunk.validate(full=self.kind == "text")  # UTF-8, which writers seldom look at
        if chunk.null_count:
            local = done + int(np.flatnonzero(np.asarray(chunk.is_null()))[0])
            here = local if rows is None else int(np.asarray(rows)[local])
            raise InputError(
                f"{self.source}: row {self.rows[here]} has no {self._content}: fill or remove it"
            )

    @cached_property
    def lengths(self) -> Ints | None:
        """Tokens per example (characters for text); None if the content is not at hand."""
        if self.kind == "none":
            return None
        pieces: list[Ints] = []
        for chunk in self._content_chunks(None):
            self._check_present(chunk, sum(len(piece) for piece in pieces), None)
            size = pc.list_value_length(chunk) if self.kind == "tokens" else pc.utf8_length(chunk)
            pieces.append(np.asarray(size, dtype=np.int64))
        return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int64)

    @cached_property
    def row_digests(self) -> Digests | None:
        """BLAKE2b-128 of each example's content, uint8 of shape (n, 16); None if unknown.

        Positions are not part of it. Token ids are hashed as 32-bit little-endian integers, text
        as UTF-8, each with a tag of its own.
        """
        if self.kind == "none":
            return None if self._digest_column is None else self._digest_column[self.rows]
        blobs: Iterator[bytes]
        if self.kind == "tokens":
            blobs = (
                b"tokens\0" + row.astype("<u4").tobytes()
                for flat, offsets in self.token_chunks()
                for row in np.split(flat, offsets[1:-1])[: len(offsets) - 1]
            )
        else:
            blobs = (b"text\0" + row.encode() for chunk in self.text_chunks() for row in chunk)
        joined = b"".join(hashlib.blake2b(b, digest_size=DIGEST_BYTES).digest() for b in blobs)
        return np.frombuffer(joined, dtype=np.uint8).reshape(-1, DIGEST_BYTES)

    @property
    def examples_fingerprint(self) -> str | None:
        """SHA-256 over the examples' digests in row order; None if the content is unknown."""
        return None if self.row_digests is None else digest_fingerprint(self.row_digests)

    @property
    def numbers(self) -> Ints:
        """Number of each row in the data set: its column `example`, or the row's own number.

        Order readers write the column; what is in it is the file's, and a test makes the order
        again from it.
        """
        values = self.column("example") if "example" in self.columns else None
        if isinstance(values, np.ndarray) and values.dtype.kind in "iu":
            return values.astype(np.int64)
        return self.rows

    def data_fingerprint(self, size: int) -> str | None:
        """`examples_fingerprint` of all rows of the source, of which these may be some.

        None where the source does not hold the content of `size` examples by row number.
        """
        whole = self._digest_column if self.kind == "none" else self._data
        if whole is None or self.numbers is not self.rows:
            return None
        total = whole.count_rows() if isinstance(whole, pads.Dataset) else len(whole)
        return replace(self, rows=np.arange(total)).examples_fingerprint if total == size else None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of content, positions, blocks, exposures and units: the transcript's identity."""
        digest = hashlib.sha256(b"palimpsest transcript 1\0")
        digest.update((self.examples_fingerprint or "content unknown").encode())
        units = None if self.units is None else _canonical_codes(self.units)
        for codes in (self.positions, _canonical_codes(self.strata), units):
            digest.update(b"\0none" if codes is None else b"\0" + codes.astype("<i8").tobytes())
        return digest.hexdigest()

    @cached_property
    def derived_seed(self) -> int:
        """The seed that the examples give, so that nobody chooses one.

        What was permuted does not change it, as exactness needs: it is of the contents within each
        stratum, and of the units' sizes. Nor do the order of the rows, labels, or where positions
        start: each would be a seed to try.
        """
        digests = self.row_digests
        words = np.zeros((self.n, 2)) if digests is None else digests.view("<u8")
        by_content = np.lexsort((*words.T, self.strata))
        digest = hashlib.sha256(b"palimpsest seed 1\0" + words[by_content].tobytes())
        for codes in (self.strata[by_content], *([] if self.units is None else [self.units])):
            sizes = np.unique(codes, return_counts=True)[1]
            digest.update(b"\0" + np.sort(sizes).astype("<i8").tobytes())
        return int.from_bytes(digest.digest()[:6], "big")

    def seed_of(self, given: int | None) -> int:
        """The seed that was given, or else `derived_seed`; raises InputError if it can be none."""
        SEED.check(given, "seed")
        return self.derived_seed if given is None else given

    # ------------------------------------------------------------------ order

    @cached_property
    def design(self) -> RankDesign:
        """What a permutation test may permute.

        Raises
        ------
        InputError
            Fewer than two examples, or constant positions.
        """
        try:
            return RankDesign(self.positions, self.strata, self.units)
        except InputError as error:
            raise InputError(f"{self.source}: {error}") from error

    def take(self, rows: ArrayLike) -> "Transcript":
        """The transcript of some rows, in the order given.

        Evidence calls them taken by hand: who chooses rows after a look at scores against
        positions finds in them what was chosen. `subsample`, plans and designs choose by a rule.

        Raises
        ------
        InputError
            A row number is out of range or occurs twice.
        """
        return self.drawn(rows, "by hand")

    def drawn(self, rows: ArrayLike, how: How | None, seed: int | None = None) -> "Transcript":
        """The transcript of rows that a rule chose, and remembers which; `take` is for one's own.

        Parameters
        ----------
        rows : array_like of int
        how : str or None
            As in `Selection`; None where a test parts its examples itself, and accounts for it.
        seed : int, optional
            Of the draw.

        Raises
        ------
        InputError
            As for `take`.
        """
        chosen = np.asarray(rows, dtype=np.int64)
        if len(chosen) == 0:
            raise InputError(f"{self.source}: no rows were chosen")
        if chosen.min() < 0 or chosen.max() >= self.n or len(np.unique(chosen)) != len(chosen):
            raise InputError(
                f"{self.source}: row numbers must be distinct and between 0 and {self.n - 1}"
            )
        return Transcript(
            self.positions[chosen],
            self.strata[chosen],
            None if self.units is None else self.units[chosen],
            self.kind,
            self.shuffle,
            self.source,
            self.rows[chosen],
            self.blocks,
            self.exposure_groups,
            self._data,
            self._content,
            self._digest_column,
            # All rows in another order are no choice.
            self.selection
            if how is None or len(chosen) == self.n
            else Selection(how, self.n, None if seed is None else int(seed)).after(self.selection),
            self._named,
        )

    def subsample(self, n: int, seed: int | None = None, stratify: bool = True) -> "Transcript":
        """A random subset of examples, drawn without looking at their content.

        Parameters
        ----------
        n : int
            Number of examples. Units stay whole: they are drawn until `n` examples are reached.
        seed : int, optional
            `derived_seed` by default; evidence says of another that it was chosen.
        stratify : bool
            Draw one from each of `n` equal windows of position, so that all of training is
            covered evenly; ties in position are broken at random.

        Returns
        -------
        Transcript
            In the order of the source's rows; ``.rows`` says which.

        Raises
        ------
        InputError
            `n` is below two or above the number of examples.

        Examples
        --------
        >>> t = Transcript.from_arrays(np.arange(1000), texts=[str(i) for i in range(1000)])
        >>> t.subsample(10).n
        10
        """
        if not 2 <= n <= self.n:
            raise InputError(f"cannot draw {n} of {self.n} examples: choose 2 to {self.n}")
        entropy = [self.seed_of(seed), 0x5AB5A4]
        rng = np.random.default_rng(np.random.SeedSequence(entropy))
        if self.units is None:
            piece_of_row, piece_position = np.arange(self.n), self.positions
            piece_stratum = self.strata
        else:
            pairs = np.column_stack([self.strata, self.units])
            _, first, piece_of_row = np.unique(
                pairs, axis=0, return_index=True, return_inverse=True
            )
            piece_of_row = piece_of_row.reshape(-1)
            piece_position = np.full(len(first), np.iinfo(np.int64).max)
            np.minimum.at(piece_position, piece_of_row, self.positions)
            piece_stratum = self.strata[first]
        sizes = np.bincount(piece_of_row)
        pieces = len(sizes)
        order = rng.permutation(pieces)
        if stratify:
            ranked = order[np.lexsort((piece_position[order], piece_stratum[order]))]
            wanted = min(pieces, max(2, int(np.ceil(n * pieces / self.n))))
            edges = np.linspace(0, pieces, wanted + 1).astype(np.int64)
            one_each = ranked[rng.integers(edges[:-1], edges[1:])]
            rest = np.setdiff1d(order, one_each, assume_unique=True)
            order = np.concatenate([rng.permutation(one_each), rng.permutation(rest)])
        enough = int(np.searchsorted(np.cumsum(sizes[order]), n)) + 1
        chosen = np.zeros(pieces, dtype=bool)
        chosen[order[:enough]] = True
        return self.drawn(np.flatnonzero(chosen[piece_of_row]), "random sample", seed)

    def order_checks(self) -> tuple[OrderCheck, ...]:
        """Length and content features against position, and between neighbours in training.

        A random order is unrelated to all of them; a sorted or curriculum order seldom is. Where
        documents were shuffled whole and then cut, or sources trained one after the other,
        neighbours are alike: units or blocks that were not declared. Two-sided; against position
        with the same permutation moments as the tests, between neighbours with those of Wald and
        Wolfowitz (1943).
        """
        features: dict[str, NDArray[np.float64]] = {}
        lengths = self.lengths
        if lengths is not None:
            features["length"] = lengths.astype(np.float64)
        if self.kind == "tokens":
            rows = self.tokens()
            features["first token id"] = np.array([r[0] if len(r) else -1 for r in rows], float)
            features["mean token id"] = np.array([r.mean() if len(r) else -1 for r in rows], float)
        elif self.kind == "text":
            texts = self.texts()
            rank = np.empty(self.n)
            rank[sorted(range(self.n), key=texts.__getitem__)] = np.arange(self.n)
            features["alphabetical order"] = rank
        for name in self.columns:
            if name in ("source", "document", "url", "file") and self._data is not None:
                values = np.asarray([str(v) for v in self.column(name)])
                features[f"column {name!r}"] = np.unique(values, return_inverse=True)[1].astype(
                    np.float64
                )
        checks = []
        for feature, values in features.items():
            sd = self.design.null_sd(values)
            if sd > 0:
                z = self.design.statistic(values) / sd
                log10 = log10_normal_tail(z, "two-sided")
                checks.append(OrderCheck(feature, self.design.correlation(values), log10))
        for feature, values in features.items():
            alike = correlation_of_neighbours(self.design, values)
            if alike is not None:
                checks.append(OrderCheck(feature, *alike, neighbours=True))
        return tuple(checks)

    def describe(self) -> TranscriptDescription:
        """Report ties, duplicates, blocks, units and whether the order looks unshuffled."""
        checks = self.order_checks()
        digests = self.row_digests
        duplicates = None if digests is None else count_duplicates(digests)
        notes = []
        if duplicates:
            notes.append(
                "duplicates do not break the null; they dilute the signal, because an example's "
                "memory is shared by all its positions"
            )
        if np.all(np.diff(self.positions) >= 0) and self.n > 2:
            notes.append("the rows are sorted by position; row order plays no part in any test")
        pairs = np.column_stack([self.strata, self.positions])
        _, counts = np.unique(pairs, axis=0, return_counts=True)
        unit_sizes = None
        if self.units is not None:
            unit_sizes = np.unique(
                np.column_stack([self.strata, self.units]), axis=0, return_counts=True
            )[1]
            if split_unit(self.design) is not None:
                notes.append(
                    "examples of one unit do not lie side by side in training: a unit is what was "
                    "shuffled as one piece, so check the column"
                )
        lengths = self.lengths
        return TranscriptDescription(
            n=self.n,
            kind={"tokens": "tokens", "text": "text", "none": "content not at hand"}[self.kind],
            first_position=int(self.positions.min()),
            last_position=int(self.positions.max()),
            tied_rows=int(counts[counts > 1].sum()),
            blocks=self.blocks,
            units=None if unit_sizes is None else len(unit_sizes),
            largest_unit=1 if unit_sizes is None else int(unit_sizes.max()),
            exposure_groups=self.exposure_groups,
            duplicate_rows=duplicates,
            shortest=None if lengths is None else int(lengths.min()),
            longest=None if lengths is None else int(lengths.max()),
            looks_unshuffled=looks_unshuffled(checks),
            order_checks=checks,
            shuffle=self.shuffle,
            notes=tuple(notes),
        )

    def labels(self) -> dict[str, pa.Array]:
        """The column of each of ``block``, ``unit`` and ``exposures`` that there is, as given."""
        return {role: self._taken(self._named[role]) for role in LABELS if role in self._named}

    @cached_property
    def exposures(self) -> Ints | None:
        """Exposure count of each example; None where there is none, or it is no whole number."""
        values = self.labels().get("exposures")
        if values is None or not pa.types.is_integer(values.type):
            return None
        return np.asarray(values, dtype=np.int64)

    def further_columns(self) -> dict[str, pa.Array]:
        """Columns that are neither position, content nor label.

        Where a name would be taken for one of these by `read`, ``other_`` stands before it.
        """
        usual = {*POSITION_NAMES, *TOKEN_NAMES, *LABELS, "text", "digest"}
        used = {*self._named.values(), self._content}
        used |= set() if self._digest_column is None else {"digest"}
        return {
            f"other_{name}" if name.lower() in usual else name: self._taken(name)
            for name in self.columns
            if name not in used
        }

    def _taken(self, name: str) -> pa.Array:
        assert self._data is not None
        values = column_of(self._data, name, self.source)
        return values if self._all_rows else values.take(pa.array(self.rows))

    def write(self, path: str | Path) -> Path:
        """Write positions, content, labels and further columns as Parquet, in row order.

        What is known of the order besides (claim, and how the examples were chosen) goes into the
        file's metadata; `read` finds it there.
        """
        columns: dict[str, Any] = {"position": self.positions}
        if self.kind == "tokens":
            columns["tokens"] = _ragged(self.tokens(), self.source)
        elif self.kind == "text":
            columns["text"] = pa.array(self.texts(), type=pa.large_string())
        elif self.row_digests is not None:
            columns["digest"] = pa.array(
                [row.tobytes() for row in self.row_digests],
                type=pa.binary(DIGEST_BYTES),
            )
        account = OrderAccount(self.n, self.shuffle, self.selection)
        table = pa.table(columns | self.labels() | self.further_columns())
        table = table.replace_schema_metadata(account.metadata())
        return write_parquet(path, table)


def digest_fingerprint(digests: Digests) -> str:
    """SHA-256 over the digests of examples, in row order."""
    return hashlib.sha256(np.ascontiguousarray(digests).tobytes()).hexdigest()


def count_duplicates(digests: Digests) -> int:
    """How many rows repeat the content of an earlier one."""
    rows = np.ascontiguousarray(digests).view(f"V{DIGEST_BYTES}")
    return len(digests) - len(np.unique(rows))


def looks_unshuffled(checks: Sequence[OrderCheck]) -> bool:
    """Whether any feature is related to position beyond chance, corrected for their number."""
    if not checks:
        return False
    smallest = min(check.log10_pvalue for check in checks)
    return bool(smallest + np.log10(len(checks)) < np.log10(UNSHUFFLED_PVALUE))


# ---------------------------------------------------------------------- reading


def _find_content(
    names: Sequence[str], tokens: str | None, text: str | None, source: str
) -> str | None:
    if tokens is not None and text is not None:
        raise InputError("both tokens= and text= were given: choose the one to be scored")
    if tokens is not None:
        return find_column(names, tokens, TOKEN_NAMES, "tokens", source)
    if text is not None:
        return find_column(names, text, ("text",), "text", source)
    token_column = find_column(names, None, TOKEN_NAMES, "tokens", source)
    text_column = find_column(names, None, ("text",), "text", source)
    if token_column and text_column:
        raise InputError(
            f"{source} has both {token_column!r} and {text_column!r}: choose what is scored with "
            "tokens= or text="
        )
    return token_column or text_column


# ---------------------------------------------------------------------- checking


def whole_numbers(values: Any, name: str, source: str) -> Ints:
    """Whole numbers, none missing; the error names the first row that is not."""
    if isinstance(values, pa.ChunkedArray | pa.Array):
        array = np.asarray(complete(values, name, source).to_numpy(zero_copy_only=False))
    else:
        try:
            array = array_of(values)
        except (TypeError, ValueError) as error:
            raise InputError(f"{source}: {name} must be one whole number per example") from error
    if array.size == 0:
        raise InputError(f"{source} is empty: a transcript needs at least two examples")
    if array.ndim != 1:
        raise InputError(f"{source}: {name} must be one whole number per example")
    if array.dtype.kind == "i":
        return array.astype(np.int64)
    if array.dtype.kind == "u":
        array = array.astype(np.int64 if array.max() < 2**63 else object)
    if array.dtype.kind == "f":
        bad = ~(np.abs(array) < 2.0**63) | (array != np.floor(array))
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            what = "no" if not np.isfinite(array[row]) else f"{array[row]!s} as"
            raise InputError(
                f"{source}: row {row} has {what} {name}: give whole numbers for all examples"
            )
        return array.astype(np.int64)
    given: list[Any] = array.tolist()
    odd = [
        i
        for i, value in enumerate(given)
        if not isinstance(value, int | Decimal)
        or isinstance(value, bool)
        or not (value % 1 == 0 and -(2**63) <= value < 2**63)
    ]
    if not odd:
        return array.astype(np.int64)
    # of text that is all digits but for some rows, these are at fault
    row = next((i for i in odd if not str(given[i]).isdecimal()), odd[0])
    raise InputError(
        f"{source}: row {row} has {given[row]!r} as {name}: give whole numbers below 2^63 for all "
        "examples"
    )


# How a missing label looks once it was turned into text on its way.
_LOST = {"nan", "NaN", "NaT", "None", "NA", "N/A", "<NA>", "null", "NULL"}


def _labels(labels: Any, name: str, source: str) -> "pa.Array | pa.ChunkedArray":
    """Labels as a column."""
    if isinstance(labels, pa.Array | pa.ChunkedArray):
        return labels
    try:
        given = array_of(labels) if hasattr(labels, "detach") else labels
        return pa.array(given, from_pandas=True)  # None, NaN and NA are missing
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{source}: {name} must be one label per example, all numbers or all text ({error})"
        ) from error


def _codes(labels: "pa.Array | pa.ChunkedArray", name: str, source: str) -> Ints:
    """A code per label; the error names the first row that has none."""
    if pa.types.is_nested(labels.type):
        raise InputError(f"{source}: {name} must be one label per example, not {labels.type}")
    complete(labels, name, source)
    chunks = labels.chunks if isinstance(labels, pa.ChunkedArray) else [labels]
    encoded = pa.chunked_array(chunks, labels.type).dictionary_encode().combine_chunks()
    words, codes = encoded.dictionary.to_pylist(), np.asarray(encoded.indices)
    lost = np.flatnonzero(np.isin(codes, [i for i, word in enumerate(words) if word in _LOST]))
    if lost.size:
        row = int(lost[0])
        raise InputError(
            f"{source}: row {row} has {words[codes[row]]!r} as {name}, which stands for a missing "
            "value: fill it, or rename that label"
        )
    distinct = np.asarray(encoded.dictionary.to_numpy(zero_copy_only=False))
    return np.unique(distinct, return_inverse=True)[1].astype(np.int64)[codes]


def _canonical_codes(codes: Ints) -> Ints:
    """Codes by first appearance, so that the fingerprint does not depend on how labels sort."""
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].astype(np.int64)


def _check_units(unit: Ints, block: Ints | None, exposures: Ints | None, source: str) -> None:
    """A unit moved as one piece, so it has one exposure count (in each block that it occurs in)."""
    if exposures is None:
        return
    base = np.zeros_like(unit) if block is None else block
    pieces = np.unique(np.column_stack([base, unit]), axis=0)
    with_counts = np.unique(np.column_stack([base, unit, exposures]), axis=0)
    if len(with_counts) > len(pieces):
        keys, counts = np.unique(with_counts[:, :2], axis=0, return_counts=True)
        stratum, code = keys[np.flatnonzero(counts > 1)[0]]
        row = int(np.flatnonzero((base == stratum) & (unit == code))[0])
        raise InputError(
            f"{source}: the unit of row {row} holds examples with different exposure counts, but a "
            "unit moves as one piece: split the unit or correct the counts"
        )


def _digest_array(values: pa.ChunkedArray, source: str) -> Digests:
    rows = values.to_pylist()
    for number, row in enumerate(rows):
        if row is None or len(row) != DIGEST_BYTES:
            raise InputError(f"{source}: row {number} has no {DIGEST_BYTES}-byte digest")
    return np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(-1, DIGEST_BYTES)


def _first_bad_text(texts: Sequence[Any]) -> int:
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            return number
        try:
            text.encode()
        except UnicodeEncodeError:
            return number
    return 0


def _ragged(rows: Sequence[NDArray[Any]], source: str) -> pa.Array:
    for number, row in enumerate(rows):
        if row.ndim != 1:
            raise InputError(f"{source}: row {number} must be a list of token ids")
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    flat = np.concatenate(rows) if rows else np.zeros(0, dtype=np.int64)
    flat = token_ids_of(flat, offsets, source, 0)
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(flat.astype(np.int64)))


def token_ids_of(flat: NDArray[Any], offsets: Ints, source: str, first_row: int) -> Ints:
    """Token ids as int64; floats are accepted where they are whole (published tables have them)."""
    if flat.size == 0:
        return flat.astype(np.int64)
    if flat.dtype.kind not in "iuf":
        raise InputError(f"{source}: token ids must be numbers, found {flat.dtype}")
    bad = flat < 0
    if flat.dtype.kind == "f":
        bad |= ~np.isfinite(flat) | (flat != np.floor(flat))
    bad |= flat >= 2**32
    if bad.any():
        where = int(np.flatnonzero(bad)[0])
        row = first_row + int(np.searchsorted(offsets, where, side="right")) - 1
        raise InputError(
            f"{source}: row {row} has {flat[where]!s} as a token id: token ids are whole numbers "
            "from 0"
        )
    return flat.astype(np.int64)


def subset_key(transcript: Transcript) -> str:
    """Short key of which rows of a source a transcript holds, for file names."""
    return content_key({"rows": hashlib.sha256(transcript.rows.tobytes()).hexdigest()})[:12]
