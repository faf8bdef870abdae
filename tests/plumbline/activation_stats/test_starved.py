"""Sites with fewer tokens than channels are named: in the summary, as a warning in the UI, in the quantized model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from plumbline.activation_stats.starved import sentence, starved_layers, starved_sites
from plumbline.activation_stats.store import save
from tests.helpers.mixtures import collected, make_mixture


def row(tokens: int, width: int, *members: str) -> dict[str, Any]:
    return {"tokens": tokens, "width": width, "members": list(members)}


HEADER = {
    "sites": {
        "a": row(64, 64, "a", "a2"),
        "b": row(63, 64, "b", "b2"),
        "c": row(5, 8, "c"),
        "k:output": row(1, 8, "k:output"),
    },
    "unreached": ["experts.3.down_proj"],
}


def test_fewer_tokens_than_channels_and_unreached_layers() -> None:
    assert starved_sites(HEADER) == {
        "b": {"tokens": 63, "width": 64},
        "c": {"tokens": 5, "width": 8},
        "experts.3.down_proj": {"tokens": 0},
    }
    assert starved_layers(HEADER, {"b2", "a", "experts.3.down_proj"}) == {
        "b2": {"tokens": 63, "width": 64},
        "experts.3.down_proj": {"tokens": 0},
    }
    assert sentence(starved_sites(HEADER)) == (
        "3 sites saw fewer tokens than they have channels: experts.3.down_proj (none), c (5 tokens, 8 channels), "
        "b (63 tokens, 64 channels)"
    )


def test_the_rank_of_a_hessian_is_the_reason(tmp_path: Path) -> None:
    """Experts of a real mixture: those named, and only those, have a Hessian without full rank for lack of tokens."""
    ids = torch.randint(0, 50, (60,), generator=torch.Generator().manual_seed(0)).tolist()
    stats = collected(make_mixture("mixtral"), [("a", ids)], ignore=("lm_head", "self_attn.o_proj"))
    starved = starved_sites(save(stats, tmp_path, {}))
    some = [name for name in starved if name in stats.sites]
    assert some and set(starved) != {*stats.sites, *stats.unreached}
    for name in some:
        hessian = stats.sites[name].hessian
        assert hessian is not None and int(torch.linalg.matrix_rank(hessian, rtol=1e-6)) <= starved[name]["tokens"]
