from __future__ import annotations

import numpy as np
import pytest

from plumbline.calibration_set.representativeness.compare import tokens_by_domain
from plumbline.calibration_set.representativeness.domains import Domains
from plumbline.calibration_set.strategies.base import Piece, Selection
from tests.helpers.calibration_pool import make_pool
from tests.helpers.panel import plain_part
from tests.helpers.tokenized_samples import sample


def test_domain_mix_is_the_share_of_tokens_that_would_have_to_move() -> None:
    pool = plain_part([10, 10, 40], [0, 1, 1])
    aspect = Domains.prepare(pool, plain_part([30, 70], [0, 1]))
    # 10 of 20 tokens in domain 0 where production has 30 %: 20 % would have to move
    assert aspect.of_set(plain_part([10, 10], [0, 1]))["domain_mix"] == pytest.approx(0.2)
    assert aspect.of_set(plain_part([10], [1]))["domain_mix"] == pytest.approx(0.3)
    assert aspect.of_draws(np.array([[0, 1], [1, 2]]))["domain_mix"] == pytest.approx([0.2, 0.3])


def test_a_joined_sample_counts_for_each_of_its_domains_and_the_model_s_own_text_for_none() -> None:
    rows = [sample(0, 20, domain="code"), sample(1, 30, domain="prose"), sample(2, 40, domain="prose")]
    pool = make_pool(rows=rows)
    code = pool.domains.index("code")
    prose = next(row for row in range(3) if pool.lengths[row] == 30)
    selection = Selection(
        np.array([code, prose, -1]),
        [{}, {}, {}],
        pieces={0: (Piece(code, 0, 5), Piece(prose, 3, 10))},
        written={2: np.arange(9, dtype=np.int32)},
    )
    assert tokens_by_domain(pool, selection, ["code", "prose"]).tolist() == [[5, 7], [0, 30], [0, 0]]


def test_a_set_that_the_model_wrote_has_no_mix() -> None:
    production = plain_part([30, 70], [0, 1])
    written = plain_part([5])
    written.domain_tokens[:] = 0
    assert Domains.prepare(production, production).of_set(written) == {}
