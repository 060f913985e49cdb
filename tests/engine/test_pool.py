"""Pooling in pieces, and the norms of llama-server."""

from __future__ import annotations

import numpy as np
import pytest

from diptych.engine.pool import Pool, normalized
from diptych.errors import EngineError, InputError

ROWS = np.random.default_rng(0).standard_normal((20, 8)).astype(np.float32)


@pytest.mark.parametrize(("pooling", "expected"), [("mean", ROWS.mean(0)), ("cls", ROWS[0]), ("last", ROWS[-1])])
@pytest.mark.parametrize("n", [1, 7, 20])
def test_pieces_of_any_size_pool_to_the_same(pooling: str, expected: np.ndarray, n: int) -> None:
    pool = Pool(pooling)
    for start in range(0, 20, n):
        pool.add(ROWS[start : start + n])
    np.testing.assert_allclose(pool.rows(), expected[None], rtol=0, atol=1e-7)


def test_a_norm_is_that_of_llama_server() -> None:
    np.testing.assert_array_equal(normalized(ROWS, -1), ROWS)
    np.testing.assert_allclose(abs(normalized(ROWS, 0)).max(axis=1), 32760, rtol=1e-6)
    for p in 1, 2, 3, 7, 400:
        expected = ROWS / np.linalg.norm(ROWS.astype(np.float64), p, axis=1, keepdims=True)
        np.testing.assert_allclose(normalized(ROWS, p), expected, rtol=0, atol=1e-6)
    for bad in -2, 1001, 10**400:
        with pytest.raises(InputError, match=f"embd_normalize is {str(bad)[:20]};"):
            normalized(ROWS, bad)


@pytest.mark.parametrize("norm", [-1, 0, 1, 2, 3])
def test_zeros_and_the_largest_numbers_have_a_norm_too(norm: int) -> None:
    extreme = np.array([[0, 0, 0], [3e38, -3e38, 3e38], [1e-40, 0, 0]], np.float32)
    assert np.isfinite(normalized(extreme, norm)).all()
    np.testing.assert_array_equal(normalized(extreme, norm)[0], 0)


def test_what_is_no_number_is_not_given_out() -> None:
    pool = Pool("mean")
    pool.add(np.array([[np.nan, 1]], np.float32))
    with pytest.raises(EngineError, match="not finite"):
        pool.rows()
