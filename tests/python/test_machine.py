"""What is measured of the processor changes speed only: results are the same, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

ATTEND = """
import hashlib
import ml_dtypes
import numpy as np
import reticle

rng = np.random.default_rng(0)
digest = hashlib.sha256()
for head_dim, value_dim, queries, keys in [(64, 64, 200, 333), (128, 72, 64, 257), (6, 5, 40, 1), (32, 32, 31, 130)]:
    q, k, v = (
        rng.standard_normal((1, heads, n, width), dtype=np.float32).astype(ml_dtypes.bfloat16)
        for heads, n, width in ((4, queries, head_dim), (2, keys, head_dim), (2, keys, value_dim))
    )
    tokens = rng.random((1, 4, queries, keys)) < 0.6
    tokens[..., 0] = True
    for mask in (None, reticle.Mask.dense(tokens.astype(np.float32) * rng.choice([0.5, 1], tokens.shape))):
        for options in ({}, {"soft_cap": 3.0}, {"attention_mask": rng.standard_normal((1, 1, queries, keys), np.float32)}):
            output, lse = reticle.attention(q, k, v, mask, scaling=0.3, **options)
            digest.update(output.tobytes() + lse.tobytes())
print(digest.hexdigest())
"""


def attend(product: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "RETICLE_BF16_PRODUCT": product}
    return subprocess.run([sys.executable, "-c", ATTEND], env=environment, capture_output=True, text=True, check=False)


def test_products_of_bfloat16_have_the_same_bits_whichever_is_chosen():
    pytest.importorskip("ml_dtypes")
    chosen = [attend(product) for product in ("pairs", "floats", "")]
    assert [run.returncode for run in chosen] == [0, 0, 0], chosen[0].stderr + chosen[1].stderr
    assert len({run.stdout for run in chosen}) == 1


def test_a_product_that_does_not_exist_is_refused_by_name():
    pytest.importorskip("ml_dtypes")
    run = attend("fast")
    if run.returncode == 0:
        pytest.skip("no AVX512_BF16 here: the variable is not read")
    assert 'RETICLE_BF16_PRODUCT is "fast"; expected "pairs" or "floats"' in run.stderr
