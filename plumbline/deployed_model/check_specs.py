"""Descriptions of the checks that a candidate must pass for the alias `champion`; promotion.py computes them."""

from __future__ import annotations

GATES = {
    "no_worse_than_the_champion": "On the documents of the report split, the candidate's mean KL is lower "
    "than the champion's, and the paired interval leaves it at most `deployment.max_worse` above.",
    "tokenized_as_it_is_served": "The tokenizer that production uses gives the fingerprint under which the candidate "
    "was calibrated.",
    "no_report_text_is_used": "No document of the report split is among the calibration samples, whole "
    "or nearly, beyond `deployment.max_near_duplicates`.",
    "layers_quantized_as_asked": "No more layers than `deployment.max_fallbacks` fell back to another method.",
    "size_and_scheme_as_asked": "The candidate has the scheme that params.yaml has now, its weights are within "
    "`deployment.max_megabytes`, and `deployment.min_share` of its matrices are quantized.",
    "not_withdrawn": "Nobody took this model back by `plumbline rollback`.",
}
"""Name -> description of each check, in display order."""
