"""Pictures of masks say what the mask says: everywhere, for every input, and no more than is known."""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlower.errors import AttnLowerError, DrawingError
from attnlower.patterns import CellRef, Expr, Facts, Predicate, Sort, build, mask_tensor
from attnlower.patterns.drawing import Cell, Picture, heat_map, make_picture, sizes_for_witness
from attnlower.patterns.drawing.extents import largest_constant
from attnlower.patterns.drawing.grid import make_grid
from attnlower.patterns.drawing.paint import PALETTE, cell_pixels, heat_palette, heat_png, picture_png
from attnlower.patterns.drawing.png import png_bytes
from attnlower.patterns.expr import Op, intern_expr
from attnlower.patterns.witness import describe_witness

B, H, Q, K = (build.coord(n) for n in "bhqk")
S, T = build.size("s0"), build.size("s1")
TWO = build.const_int(2)


def number(value: int) -> Expr:
    return build.const_int(value)


def ref(label: str, dtype: torch.dtype = torch.int64, is_input: bool = True) -> CellRef:
    return CellRef(label, label, dtype, is_input)


def predicate(
    allowed: Expr, q: Expr = S, k: Expr = S, b: Expr = TWO, bias: Expr | None = None, **ranges: Any
) -> Predicate:
    facts = Facts(ranges, {"b": b, "h": TWO, "q": q, "k": k})
    return Predicate(allowed, bias, allowed, facts)


CAUSAL = build.le(K, Q)
PADDING = build.not_(build.eq0(build.cell(ref("attention_mask"), (B, K))))
SAME_DOCUMENT = build.eq(build.cell(ref("ids"), (B, Q)), build.cell(ref("ids"), (B, K)))


def window(width: int) -> Expr:
    return build.and_(CAUSAL, build.lt(build.sub(Q, number(width)), K))


def grids(picture: Picture) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(picture.grid.queries).view(-1, 1), torch.tensor(picture.grid.keys).view(1, -1)


# --- what is drawn is what the mask is ------------------------------------------------------------------------


POSITIONAL: dict[str, tuple[Expr, Callable[[Any, Any], Any]]] = {
    "full": (build.TRUE, lambda q, k: (q >= 0) & (k >= 0)),
    "nothing": (build.FALSE, lambda q, k: (q < 0) & (k < 0)),
    "causal": (CAUSAL, lambda q, k: k <= q),
    "window": (window(6), lambda q, k: (k <= q) & (k > q - 6)),
    "one future key": (build.le(K, build.add(Q, number(1))), lambda q, k: k <= q + 1),
    "chunks": (
        build.eq(build.floordiv(Q, number(5)), build.floordiv(K, number(5))),
        lambda q, k: q // 5 == k // 5,
    ),
    "chessboard": (build.eq0(build.mod(build.add(Q, K), number(2))), lambda q, k: (q + k) % 2 == 0),
    "causal but for a column": (build.or_(CAUSAL, build.eq(K, number(9))), lambda q, k: (k <= q) | (k == 9)),
}


@pytest.mark.parametrize("name", POSITIONAL)
@pytest.mark.parametrize("sizes", [{}, {"s0": 1}, {"q": 7}, {"s0": 100}])
def test_masks_of_positions(name: str, sizes: dict[str, int]) -> None:
    allowed, truth = POSITIONAL[name]
    picture = make_picture(predicate(allowed), sizes)
    assert torch.equal(picture.cells == Cell.ALLOWED, truth(*grids(picture)))
    assert not picture.depends_on_data
    assert picture.grid.shape[0] <= 32 and picture.grid.shape[1] <= 32


def test_given_data_are_drawn_exactly() -> None:
    mask = predicate(build.and_(CAUSAL, PADDING, SAME_DOCUMENT), b=build.size("s1"))
    data = {
        "attention_mask": torch.tensor([[1, 1, 1, 1, 0], [0, 1, 0, 1, 1], [1, 1, 1, 1, 1]]),
        "ids": torch.tensor([[0, 0, 0, 1, 1], [2, 2, 2, 2, 2], [4, 3, 4, 3, 4]]),
    }
    expected = mask_tensor(mask, {"s0": 5, "s1": 3}, data)
    for row in range(3):
        picture = make_picture(mask, tensors=data, batch=row)
        assert torch.equal(picture.cells == Cell.ALLOWED, expected[row, 0])
        assert not picture.depends_on_data and not picture.is_example
        assert picture.grid.extents == {"b": 3, "h": 2, "q": 5, "k": 5}


def test_the_head_is_chosen() -> None:
    mask = predicate(build.le(K, build.add(Q, H)))
    for head in (0, 1):
        picture = make_picture(mask, head=head)
        q, k = grids(picture)
        assert torch.equal(picture.cells == Cell.ALLOWED, k <= q + head)
    assert "head 1 of 2" in mask.draw(head=1)


# --- three values ---------------------------------------------------------------------------------------------

CELLS = {
    "flag": (torch.bool, [(B, K), (B, Q)]),
    "ids": (torch.int64, [(B, Q), (B, K), (B, build.floordiv(Q, number(2))), (B, build.floordiv(K, number(2)))]),
}
LENGTH = 3
ASSIGNMENTS = [
    {"flag": torch.tensor([flags]), "ids": torch.tensor([ids])}
    for flags in itertools.product((False, True), repeat=LENGTH)
    for ids in itertools.product((0, 1, 2), repeat=LENGTH)
]


def integers() -> st.SearchStrategy[Expr]:
    cells = [build.cell(ref("ids"), index) for index in CELLS["ids"][1]]
    leaves = st.sampled_from([Q, K, number(0), number(1), number(2), *cells])

    def extend(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
        pairs = st.tuples(inner, inner)
        return st.one_of(
            pairs.map(lambda p: build.add(*p)),
            pairs.map(lambda p: build.sub(*p)),
            pairs.map(lambda p: build.mul(*p)),
            inner.map(lambda e: build.floordiv(e, number(2))),
            inner.map(lambda e: build.mod(e, number(3))),
            pairs.map(lambda p: build.maximum(*p)),
        )

    return st.recursive(leaves, extend, max_leaves=4)


def conditions() -> st.SearchStrategy[Expr]:
    flags = [build.cell(ref("flag", torch.bool), index) for index in CELLS["flag"][1]]
    pairs = st.tuples(integers(), integers())
    leaves = st.one_of(
        st.sampled_from(flags), pairs.map(lambda p: build.le(*p)), pairs.map(lambda p: build.eq(*p)), st.just(CAUSAL)
    )

    def extend(inner: st.SearchStrategy[Expr]) -> st.SearchStrategy[Expr]:
        return st.one_of(
            st.tuples(inner, inner).map(lambda p: build.and_(*p)),
            st.tuples(inner, inner).map(lambda p: build.or_(*p)),
            inner.map(build.not_),
            st.tuples(inner, inner, inner).map(lambda p: build.ite(*p)),
        )

    return st.recursive(leaves, extend, max_leaves=5)


@settings(max_examples=150)
@given(conditions())
def test_sure_cells_are_so_for_every_input(allowed: Expr) -> None:
    """Nothing is drawn as allowed or blocked that any data could change."""
    mask = predicate(allowed, q=number(LENGTH), k=number(LENGTH), b=build.ONE)
    drawn = make_picture(mask).cells
    for data in ASSIGNMENTS[:: max(1, len(ASSIGNMENTS) // 60)]:
        exact = make_picture(mask, tensors=data).cells
        assert torch.equal(exact == Cell.ALLOWED, mask_tensor(mask, {}, data)[0, 0])
        sure = drawn != Cell.DATA
        assert torch.equal(drawn[sure], exact[sure]), f"{allowed!r} with {data}"


def decided(allowed: Expr, length: int = 4) -> torch.Tensor:
    return make_picture(predicate(allowed, q=number(length), k=number(length))).cells


def test_padding_leaves_the_structure_sure() -> None:
    drawn = decided(build.and_(CAUSAL, PADDING))
    q, k = torch.arange(4).view(-1, 1), torch.arange(4)
    assert torch.equal(drawn == Cell.BLOCKED, k > q)
    assert torch.equal(drawn == Cell.DATA, k <= q)
    drawn = decided(build.or_(CAUSAL, PADDING))
    assert torch.equal(drawn == Cell.ALLOWED, k <= q)
    assert torch.equal(drawn == Cell.DATA, k > q)


@pytest.mark.parametrize(
    "number_of",
    [
        lambda at: build.cell(ref("ids"), (B, at)),
        lambda at: build.cell(ref("ids", is_input=False), (B, at)),
        lambda at: build.floordiv(build.sub(at, build.cell(ref("left"), (B,))), number(6)),
        lambda at: build.apply("secret", Sort.INT, (B, at)),
        lambda at: build.sum_over("~0", build.cell(ref("ids"), (B, build.coord("~0"))), at),
    ],
    ids=["input", "unread", "shifted chunk", "unknown function", "running sum"],
)
def test_the_same_data_is_equal_to_itself(number_of: Callable[[Expr], Expr]) -> None:
    """A document sees itself whatever its number: only the diagonal is sure."""
    diagonal = torch.eye(4, dtype=torch.bool)
    drawn = decided(build.eq(number_of(Q), number_of(K)))
    assert torch.equal(drawn == Cell.ALLOWED, diagonal)
    assert torch.equal(drawn == Cell.DATA, ~diagonal)
    drawn = decided(build.lt(number_of(Q), number_of(K)))
    assert torch.equal(drawn == Cell.BLOCKED, diagonal)


def test_elements_of_different_tensors_are_not_taken_for_equal() -> None:
    drawn = decided(build.eq(build.cell(ref("ids"), (B, Q)), build.cell(ref("other"), (B, K))))
    assert bool((drawn == Cell.DATA).all())
    drawn = decided(build.eq(build.cell(ref("ids"), (B, Q)), build.cell(ref("ids"), (H, K))))
    assert torch.equal(drawn == Cell.ALLOWED, torch.eye(4, dtype=torch.bool))  # b and h are both 0 here


def test_blocks_that_read_one_element_are_sure() -> None:
    half = [build.cell(ref("ids"), (B, build.floordiv(at, number(2)))) for at in (Q, K)]
    q, k = torch.arange(4).view(-1, 1), torch.arange(4)
    assert torch.equal(decided(build.eq(*half)) == Cell.ALLOWED, q // 2 == k // 2)


def test_an_operation_that_nobody_knows_depends_on_data() -> None:
    """The expression language grows: a picture leaves open what it cannot evaluate."""
    novel: Any = "an operation of the future"
    drawn = decided(build.and_(CAUSAL, intern_expr(novel, Sort.BOOL, (Q, K))))
    q, k = torch.arange(4).view(-1, 1), torch.arange(4)
    assert torch.equal(drawn == Cell.BLOCKED, k > q)
    assert torch.equal(drawn == Cell.DATA, k <= q)
    number_of = [intern_expr(novel, Sort.INT, (at,)) for at in (Q, K)]
    assert torch.equal(decided(build.eq(*number_of)) == Cell.ALLOWED, torch.eye(4, dtype=torch.bool))


@pytest.mark.parametrize("body_reads", ["the bound coordinate", "the batch only"])
def test_sums_of_given_data(body_reads: str) -> None:
    """sum over i <= k of (sum over j <= i of x[b, j]) against the numbers themselves, up to a long row."""
    i, j = build.coord("~0"), build.coord("~1")
    inner = build.sum_over("~1", build.cell(ref("x"), (B, j)), i)
    body = inner if body_reads == "the bound coordinate" else build.cell(ref("x"), (B, number(1)))
    mask = predicate(build.le(build.sum_over("~0", body, K), number(50)))
    for length in (5, 20000):
        x = torch.randint(0, 2, (2, length))
        counted = x.cumsum(1) if body_reads == "the bound coordinate" else x[:, 1:2].expand(-1, length)
        sizes = {"q": length} if body_reads == "the batch only" else {}
        picture = make_picture(mask, sizes, {"x": x}, batch=1)  # S * S numbers of a long row would not fit
        expected = counted.cumsum(1)[1, torch.tensor(picture.grid.keys)] <= 50
        if body_reads == "the batch only":
            picture = make_picture(mask, {"q": length}, {"x": x}, batch=1)
        assert torch.equal(picture.cells[0] == Cell.ALLOWED, expected)


def test_floats_are_not_taken_for_equal_to_themselves() -> None:
    """NaN is not."""
    cells = [build.cell(ref("scores", torch.float32), (B, at)) for at in (Q, K)]
    assert bool((decided(build.apply("feq", Sort.BOOL, cells)) == Cell.DATA).all())


# --- sizes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2, 6, 20, 128, 4096])
def test_a_window_shows(width: int) -> None:
    """All three: keys too late, keys too early, keys in the window."""
    picture = make_picture(predicate(window(width)))
    drawn = picture.cells
    assert picture.grid.extents["k"] >= 2 * width
    assert drawn[0, -1] == Cell.BLOCKED
    assert drawn[-1, 0] == Cell.BLOCKED
    assert bool((drawn.diagonal() == Cell.ALLOWED).all())
    if picture.grid.stride > 1:
        assert f"every {picture.grid.stride}" in picture.grid.caption
    else:
        assert "every" not in picture.grid.caption


def test_constants_that_are_no_distances_do_not_count() -> None:
    token = build.cell(ref("input_ids"), (B, K))
    assert largest_constant((build.eq(token, number(151643)),)) == 0
    assert largest_constant((build.le(K, number(2**40)),)) == 0
    assert largest_constant((window(6),)) == 6


def test_queries_and_keys_of_different_numbers_differ() -> None:
    lower_right = build.le(K, build.add(Q, build.sub(T, S)))
    picture = make_picture(predicate(lower_right, k=T))
    extents = picture.grid.extents
    assert extents["k"] > extents["q"]
    q, k = grids(picture)
    assert torch.equal(picture.cells == Cell.ALLOWED, k <= q + extents["k"] - extents["q"])


def test_sums_of_sizes_agree() -> None:
    """A cache of s1 positions and s0 new ones: sizes are chosen, not extents."""
    mask = predicate(build.le(K, build.add(Q, T)), k=build.add(S, T))
    extents = make_picture(mask).grid.extents
    assert extents["k"] > extents["q"]
    assert make_picture(mask, {"q": 3, "s1": 4}).grid.extents["k"] == 7
    assert make_picture(mask, {"q": 3, "k": 7}).grid.extents["k"] == 7


def test_ranges_are_kept() -> None:
    assert make_picture(predicate(window(50), s0=(0, 64))).grid.extents["q"] == 64
    assert make_picture(predicate(CAUSAL, s0=(100, None))).grid.extents["q"] == 100


def test_an_extent_that_needs_large_sizes() -> None:
    mask = predicate(CAUSAL, q=build.sub(S, number(100)), k=build.sub(S, number(100)))
    assert make_picture(mask).grid.extents["q"] > 0


def test_sizes_known_at_run_time_only_are_drawn() -> None:
    unbacked = build.apply("u0", Sort.INT, ())
    picture = make_picture(predicate(CAUSAL, q=unbacked, k=unbacked))
    assert picture.grid.shape == (16, 16)


def test_sampling_keeps_diagonals_and_shows_the_point() -> None:
    grid = make_grid({"q": 100, "k": 1000}, {}, 32, {"q": 33, "k": 999})
    assert grid.stride == 32
    assert grid.queries == (0, 33, 64, 96)
    assert grid.keys[:3] == (0, 32, 64) and grid.keys[-1] == 999
    assert grid.mark({"q": 33, "k": 999}) == (1, 31)
    assert grid.mark({"q": 34, "k": 999}) is None


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"x": 4}, "no size 'x' in this mask"),
        ({"q": 0}, "at least one position"),
        ({"q": 2.5}, "whole numbers"),
        ({"q": True}, "whole numbers"),
        ({"q": 4, "k": 5}, "axis 'k' has size 4 here, not 5"),
        ({"s0": 4, "q": 5}, "axis 'q' has size 4 here, not 5"),
        ({"h": 5}, "axis 'h' has size 2 here, not 5"),
        ({"s0": 65}, "outside its range 0 to 64"),
    ],
)
def test_sizes_that_do_not_fit(sizes: dict[str, int], says: str) -> None:
    with pytest.raises(DrawingError, match=says):
        predicate(CAUSAL, s0=(0, 64)).draw(sizes)


def test_an_axis_of_two_free_sizes_is_not_guessed() -> None:
    with pytest.raises(DrawingError, match="'s0' and 's1'"):
        predicate(CAUSAL, k=build.add(S, T)).draw({"k": 7})


@pytest.mark.parametrize(("where", "says"), [({"batch": 2}, "no position 2 on axis 'b'"), ({"head": -1}, "axis 'h'")])
def test_a_batch_or_head_that_is_not_there(where: dict[str, int], says: str) -> None:
    with pytest.raises(DrawingError, match=says):
        predicate(CAUSAL).draw(**where)


def test_tensors_that_do_not_fit() -> None:
    mask = predicate(build.and_(CAUSAL, PADDING))
    with pytest.raises(DrawingError, match="depends on attention_mask: no such tensor among \\['mask'\\]"):
        mask.draw(tensors={"mask": torch.ones(2, 8)})
    with pytest.raises(DrawingError, match="has 1 axes"):
        mask.draw(tensors={"attention_mask": torch.ones(8)})
    with pytest.raises(DrawingError, match="axis 1 of 'attention_mask' has size 8, but axis 'k'"):
        mask.draw({"k": 9}, tensors={"attention_mask": torch.ones(2, 8)})
    with pytest.raises(DrawingError, match="axis 0 of 'attention_mask' has size 1, but axis 'b'"):
        mask.draw(tensors={"attention_mask": torch.ones(1, 8)})
    assert issubclass(DrawingError, AttnLowerError) and issubclass(DrawingError, ValueError)


def test_odd_arguments_are_refused() -> None:
    mask = predicate(build.and_(CAUSAL, PADDING))
    with pytest.raises(DrawingError, match="'attention_mask' is a list, not a tensor"):
        mask.draw(tensors={"attention_mask": [[1, 1]]})  # type: ignore[dict-item]
    with pytest.raises(DrawingError, match="limit is 0"):
        mask.draw(limit=0)


def test_a_division_by_zero_is_no_crash() -> None:
    mask = predicate(build.eq0(build.mod(K, build.cell(ref("width"), ()))))
    with pytest.raises(DrawingError, match="no value at these sizes"):
        mask.draw(tensors={"width": torch.tensor(0)})


# --- examples -------------------------------------------------------------------------------------------------


def example(allowed: Expr, batch: int = 0, **extents: Expr) -> tuple[torch.Tensor, str, torch.Tensor, torch.Tensor]:
    picture = make_picture(predicate(allowed, **extents), example=True, batch=batch)
    assert picture.is_example
    return (picture.cells == Cell.ALLOWED, "; ".join(picture.notes), *grids(picture))


@pytest.mark.parametrize(
    "real",
    [
        PADDING,
        build.cell(ref("mask", torch.bool), (B, K)),
        build.not_(build.cell(ref("mask", torch.bool), (B, K))),
        build.eq(build.cell(ref("mask"), (B, K)), build.ONE),
        build.not_(build.eq(build.cell(ref("input_ids"), (B, K)), number(50256))),
        build.lt(build.ZERO, build.cell(ref("mask"), (B, K))),
        build.eq(build.cell(ref("key_padding"), (B, K)), build.ZERO),
    ],
    ids=["int", "bool", "negated", "one", "pad token", "positive", "inverted"],
)
def test_example_of_padding(real: Expr) -> None:
    """Right-padded in even rows, left-padded in odd ones, however padding is coded."""
    drawn, note, q, k = example(build.and_(CAUSAL, real))
    assert torch.equal(drawn, (k <= q) & (k < 12))
    assert "last 4 of 16 keys are padding" in note
    drawn, note, q, k = example(build.and_(CAUSAL, real), batch=1)
    assert torch.equal(drawn, (k <= q) & (k >= 4))
    assert "first 4" in note


def test_example_of_documents() -> None:
    drawn, note, q, k = example(build.and_(CAUSAL, SAME_DOCUMENT))
    number_of = torch.bucketize(torch.arange(16), torch.tensor([4, 10]))
    assert torch.equal(drawn, (k <= q) & (number_of.view(-1, 1) == number_of))
    assert "3 documents" in note


def test_example_of_positions_that_restart() -> None:
    position = [build.cell(ref("position_ids"), (B, at)) for at in (Q, K)]
    i = build.coord("~0")
    before = build.cell(ref("position_ids"), (B, build.maximum(build.sub(i, build.ONE), build.ZERO)))
    here = build.cell(ref("position_ids"), (B, i))
    broken = build.ite(build.eq(here, build.add(before, build.ONE)), build.ZERO, build.ONE)
    document = [build.sum_over("~0", broken, at) for at in (Q, K)]
    drawn, note, q, k = example(build.and_(build.eq(*document), build.le(position[1], position[0])))
    number_of = torch.bucketize(torch.arange(16), torch.tensor([4, 10]))
    assert torch.equal(drawn, (k <= q) & (number_of.view(-1, 1) == number_of))
    assert "restarts at 0, 5 and 11" in note


def at_both(label: str, test: Callable[[Expr], Expr]) -> tuple[Expr, Expr]:
    query, key = (test(build.cell(ref(label), (B, at))) for at in (Q, K))
    return query, key


def test_example_of_positions_without_documents() -> None:
    query, key = at_both("position_ids", lambda element: element)
    drawn, note, q, k = example(build.and_(build.le(key, query), build.lt(build.sub(query, number(3)), key)))
    assert torch.equal(drawn, (k <= q) & (k > q - 3)) and note == "position_ids: 0, 1, 2, ..."


def test_example_of_marked_tokens() -> None:
    """Image tokens see one another: a stretch of them."""
    drawn, note, q, k = example(build.or_(CAUSAL, build.and_(*at_both("kind", lambda e: build.eq(e, number(5))))))
    assert torch.equal(drawn, (k <= q) | ((q >= 5) & (q < 11) & (k >= 5) & (k < 11)))
    assert note == "kind: 5 from position 5 to 10, 1 elsewhere"


def test_example_of_padding_on_both_sides() -> None:
    drawn, note, q, k = example(build.and_(*at_both("mask", lambda e: build.not_(build.eq0(e)))))
    assert torch.equal(drawn, (q < 12) & (k < 12)) and "last 4 of 16 keys are padding" in note


def test_example_of_a_prefix() -> None:
    drawn, note, q, k = example(build.or_(CAUSAL, build.eq0(build.cell(ref("token_type"), (B, K)))))
    assert torch.equal(drawn, (k <= q) | (k < 6))
    assert note == "token_type: 0 for the first 6 of 16 keys, 1 for the others"


def test_example_of_breaks() -> None:
    """Documents counted from separators in the tokens."""
    separator = build.eq(build.cell(ref("tokens"), (B, build.coord("~0"))), number(2))
    count = [build.sum_over("~0", build.ite(separator, build.ONE, build.ZERO), at) for at in (Q, K)]
    drawn, note, q, k = example(build.and_(CAUSAL, build.eq(*count)))
    number_of = torch.bucketize(torch.arange(16), torch.tensor([4, 10]))
    assert torch.equal(drawn, (k <= q) & (number_of.view(-1, 1) == number_of))
    assert note == "tokens: 2 at 5 and 11, else 1"


def test_example_of_a_cache() -> None:
    drawn, note, q, k = example(build.le(K, build.cell(ref("cache_position"), (Q,))), k=T)
    assert torch.equal(drawn, k <= q + 8)
    drawn, note, q, k = example(build.le(K, build.add(Q, build.cell(ref("seen"), ()))), k=T)
    assert torch.equal(drawn, k <= q + 8) and note == "seen = 8"


def test_example_of_lengths() -> None:
    drawn, note, _, k = example(build.lt(K, build.cell(ref("lengths"), (B,))))
    assert torch.equal(drawn, (k < 8).expand(16, 16)) and note == "lengths = 8"


def test_no_example_of_a_whole_mask() -> None:
    mask = predicate(build.cell(ref("mask", torch.bool), (B, build.ZERO, Q, K)))
    with pytest.raises(DrawingError, match="no example inputs"):
        mask.draw(example=True)
    assert "depends on data" in mask.draw()


def test_examples_say_so() -> None:
    text = predicate(build.and_(CAUSAL, PADDING)).draw(example=True)
    assert "example: attention_mask: the last 4 of 16 keys are padding" in text
    assert "example" not in predicate(CAUSAL).draw()


# --- text -----------------------------------------------------------------------------------------------------


def test_text() -> None:
    mask = predicate(build.and_(build.le(K, build.add(Q, build.ONE)), PADDING))
    text = mask.draw({"q": 5}, witness={"b": 1, "h": 0, "q": 1, "k": 2, "s0": 5, "attention_mask[1, 2]": 1})
    assert text.splitlines() == [
        "k <= q + 1 & attention_mask[b, k]",
        "5 queries by 5 keys, batch 1 of 2, head 0 of 2",
        "q\\k 0       4",
        "0   ▒▒▒▒· · ·",
        "1   ▒▒▒▒><· ·",
        "2   ▒▒▒▒▒▒▒▒·",
        "3   ▒▒▒▒▒▒▒▒▒▒",
        "4   ▒▒▒▒▒▒▒▒▒▒",
        "· blocked   ▒▒ depends on data   >< batch 1: query 1 may see key 2 where attention_mask[1, 2] = 1, "
        "unlike causal",
    ]


@pytest.mark.parametrize("name", POSITIONAL)
def test_text_shows_the_cells(name: str) -> None:
    mask = predicate(POSITIONAL[name][0])
    picture = make_picture(mask)
    rows = mask.draw().splitlines()[3:-1]
    assert len(rows) == picture.grid.shape[0]
    signs = {Cell.ALLOWED: "██", Cell.BLOCKED: "· "}
    for row, cells in zip(rows, picture.cells.tolist(), strict=True):
        assert row.split(maxsplit=1)[1].ljust(2 * len(cells)) == "".join(signs[Cell(c)] for c in cells)
    assert all(len(line) <= 80 and line == line.rstrip() for line in mask.draw().splitlines())


def test_column_numbers_stand_over_their_columns() -> None:
    lines = predicate(window(30000)).draw().splitlines()
    header, row = lines[2], lines[3]
    picture = make_picture(predicate(window(30000)))
    start = row.index("█")
    for word in header.split()[1:]:
        assert picture.grid.keys[(header.index(f" {word} ".rstrip()) + 1 - start) // 2] == int(word)


# --- counterexamples ------------------------------------------------------------------------------------------


def test_a_witness_is_marked_and_put_in_words() -> None:
    mask = predicate(build.le(K, build.add(Q, build.ONE)))
    witness = {"q": 0, "k": 1, "b": 0, "h": 0, "s0": 2}
    picture = make_picture(mask, sizes_for_witness(mask, witness), witness=witness)
    assert picture.witness == (0, 1)
    assert picture.cells[0, 1] == Cell.ALLOWED
    assert picture.grid.shape == (16, 16)  # the formula speaks of no sizes: any do
    assert describe_witness(mask, witness) == "batch 0: query 0 may see key 1, unlike causal"


def test_a_witness_far_away_is_in_the_picture() -> None:
    mask = predicate(window(4096))
    witness = {"q": 4097, "k": 1, "b": 1, "h": 0, "s0": 5000}
    picture = make_picture(mask, sizes_for_witness(mask, witness), witness=witness)
    assert picture.witness is not None
    row, column = picture.witness
    assert (picture.grid.queries[row], picture.grid.keys[column]) == (4097, 1)
    assert picture.cells[row, column] == Cell.BLOCKED
    assert "batch 1 of 2" in picture.grid.caption
    assert describe_witness(mask, witness) == "batch 1: query 4097 may not see key 1, unlike causal"


def test_a_witness_that_rests_on_sizes_is_drawn_at_these() -> None:
    mask = predicate(build.le(K, build.add(Q, build.sub(T, S))), k=T)
    witness = {"q": 0, "k": 2, "b": 0, "h": 0, "s0": 3, "s1": 5}
    picture = make_picture(mask, sizes_for_witness(mask, witness), witness=witness)
    assert picture.grid.shape == (3, 5)
    assert picture.cells[0, 2] == Cell.ALLOWED
    assert describe_witness(mask, witness).startswith("batch 0: query 0 may see key 2")


# --- bias -----------------------------------------------------------------------------------------------------


def test_a_bias_of_positions_is_a_heat_map() -> None:
    distance = intern_expr(Op.TO_FLOAT, Sort.FLOAT, (build.sub(K, Q),), torch.float32)
    slope = build.apply("mul:float32", Sort.FLOAT, (distance, build.const_float(0.5)))
    heat = heat_map(predicate(CAUSAL, bias=slope))
    assert heat is not None
    q, k = torch.tensor(heat.grid.queries).view(-1, 1), torch.tensor(heat.grid.keys)
    expected = ((k - q) * 0.5).double().masked_fill(k > q, float("nan"))
    assert torch.equal(heat.values.nan_to_num(nan=1e9), expected.nan_to_num(nan=1e9))
    assert heat.range == (-7.5, 0.0)


def test_a_table_looked_up_by_position_is_drawn_by_index() -> None:
    bucket = build.maximum(build.sub(Q, K), build.ZERO)
    table = build.cell(ref("weight", torch.float32), (bucket, H))
    heat = heat_map(predicate(build.TRUE, bias=table))
    assert heat is not None and "index into axis 0 of weight" in heat.what
    assert heat.range == (0, 15)
    weight = torch.randn(16, 2)
    heat = heat_map(predicate(build.TRUE, bias=table), tensors={"weight": weight}, head=1)
    assert heat is not None and heat.what == "added to the scores"
    q, k = torch.arange(16).view(-1, 1), torch.arange(16)
    assert torch.equal(heat.values, weight[(q - k).clamp(min=0), 1].double())


def test_a_bias_of_the_masks_own_data_has_an_example() -> None:
    """ALiBi over the count of real tokens: known only with an attention_mask."""
    i = build.coord("~0")
    count = build.sum_over("~0", build.cell(ref("attention_mask"), (B, i)), K)
    bias = intern_expr(Op.TO_FLOAT, Sort.FLOAT, (build.sub(count, build.ONE),), torch.float32)
    mask = predicate(build.and_(CAUSAL, PADDING), bias=bias)
    assert heat_map(mask) is None
    heat = heat_map(mask, example=True)
    assert heat is not None and heat.notes == ("attention_mask: the last 4 of 16 keys are padding",)
    assert torch.equal(heat.values[-1, :12], torch.arange(12).double()) and bool(heat.values[-1, 12:].isnan().all())


def test_a_bias_of_data_is_not_drawn() -> None:
    free = build.cell(ref("bias", torch.float32), (B, H, Q, K))
    assert heat_map(predicate(build.TRUE, bias=free)) is None
    assert heat_map(predicate(build.and_(CAUSAL, PADDING), bias=free), example=True) is None
    assert heat_map(predicate(CAUSAL)) is None


# --- PNG ------------------------------------------------------------------------------------------------------


def decoded(png: bytes) -> tuple[torch.Tensor, list[tuple[int, ...]]]:
    """Palette indices (height, width) and colours (r, g, b, a), read by the letter of the PNG standard."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    chunks: dict[bytes, bytes] = {}
    at = 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        name, content = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        assert struct.unpack(">I", png[at + 8 + length : at + 12 + length]) == (zlib.crc32(name + content),)
        chunks[name] = content
        at += 12 + length
    assert list(chunks) == [b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"]
    width, height, depth, kind, *rest = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert (depth, kind, rest) == (8, 3, [0, 0, 0])
    rows = torch.tensor(list(zlib.decompress(chunks[b"IDAT"])), dtype=torch.uint8).view(height, width + 1)
    assert not rows[:, 0].any()
    colours = [tuple(chunks[b"PLTE"][i * 3 : i * 3 + 3]) for i in range(len(chunks[b"PLTE"]) // 3)]
    return rows[:, 1:], [(*c, a) for c, a in zip(colours, chunks[b"tRNS"], strict=True)]


@pytest.mark.parametrize("name", POSITIONAL)
@pytest.mark.parametrize("size", [1, 5, 64])
def test_every_cell_of_the_png_has_its_colour(name: str, size: int) -> None:
    allowed, truth = POSITIONAL[name]
    picture = make_picture(predicate(allowed), {"q": size}, limit=64)
    pixels, colours = decoded(picture_png(picture))
    side = cell_pixels(size, size)
    assert pixels.shape == (size * side, size * side)
    assert colours == list(PALETTE)
    middle = pixels[side // 2 :: side, side // 2 :: side]
    assert torch.equal(middle == Cell.ALLOWED, truth(*grids(picture)))
    assert bool(((middle == Cell.ALLOWED) | (middle == Cell.BLOCKED)).all())


def test_what_depends_on_data_is_striped_and_a_witness_marked() -> None:
    mask = predicate(build.and_(CAUSAL, PADDING))
    picture = make_picture(mask, {"q": 8}, witness={"q": 5, "k": 2})
    pixels, _ = decoded(picture_png(picture))
    blocks = pixels.view(8, 36, 8, 36).permute(0, 2, 1, 3)
    for row, column in itertools.product(range(8), range(8)):
        seen = set(blocks[row, column].flatten().tolist())
        if (row, column) == (5, 2):
            assert seen == {Cell.DATA, 4, 5, 6}
        else:
            assert seen == ({Cell.DATA, 3, 4} if column <= row else {Cell.BLOCKED, 3})


def test_heat_maps_go_from_dark_to_bright() -> None:
    distance = intern_expr(Op.TO_FLOAT, Sort.FLOAT, (build.sub(K, Q),), torch.float32)
    heat = heat_map(predicate(CAUSAL, bias=distance))
    assert heat is not None
    pixels, colours = decoded(heat_png(heat))
    assert pixels[0, 0] == 254 and pixels[-1, 0] == 0 and pixels[0, -1] == 255
    assert colours == list(heat_palette()) and colours[255][3] < 60
    assert sum(colours[0][:3]) < sum(colours[254][:3])


def test_the_png_writer_refuses_nonsense() -> None:
    good = torch.zeros(2, 2, dtype=torch.uint8)
    for pixels, palette in (
        (good.long(), PALETTE),
        (good[0], PALETTE),
        (good[:0], PALETTE),
        (good + len(PALETTE), PALETTE),
    ):
        with pytest.raises(ValueError):
            png_bytes(pixels, palette)


# --- masks that were read -------------------------------------------------------------------------------------


def causal(x: torch.Tensor) -> torch.Tensor:
    return torch.ones(x.shape[2], x.shape[2], dtype=torch.bool).tril()


READ: dict[str, Callable[..., torch.Tensor]] = {
    "causal": lambda x, m: causal(x),
    "additive": lambda x, m: torch.zeros(x.shape[2], x.shape[2]).masked_fill(~causal(x), float("-inf")),
    "padded": lambda x, m: causal(x) & m[:, None, None, :].bool(),
    "packed": lambda x, m: causal(x) & (m[:, None, :, None] == m[:, None, None, :]),
    "window with a sink": lambda x, m: (causal(x) & ~causal(x).tril(-5)) | (torch.arange(x.shape[2]) < 2),
    "by head": lambda x, m: (
        torch.arange(x.shape[2]) <= torch.arange(x.shape[2])[:, None] + torch.arange(2).view(-1, 1, 1)
    ),
}


@pytest.mark.parametrize("how", ["export", "dynamo"])
def test_masks_of_programs(how: str, analyze_masks: Any) -> None:
    x, m = torch.randn(2, 2, 12, 4), torch.tensor([[1] * 7 + [0] * 5, [0] * 3 + [1] * 5 + [2] * 4])
    sites = analyze_masks(READ, (x, m), how)
    for name, mask in READ.items():
        site = sites[name]
        tensors = dict(zip(site.labels, (x, m), strict=False))
        actual = mask(x, m)
        actual = (actual if actual.dtype is torch.bool else actual == 0).expand(2, 2, 12, 12)
        for batch, head in itertools.product(range(2), range(2)):
            picture = make_picture(site.classification.predicate, tensors=tensors, batch=batch, head=head)
            assert torch.equal(picture.cells == Cell.ALLOWED, actual[batch, head]), name
            without = make_picture(site.classification.predicate, batch=batch, head=head).cells
            sure = without != Cell.DATA
            assert torch.equal((without == Cell.ALLOWED)[sure], actual[batch, head][sure]), name
