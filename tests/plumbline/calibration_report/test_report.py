"""The page: complete, self-contained, escaped, the same every time."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from plumbline.artifact import read_json, write_json
from plumbline.calibration_report.scales import around_zero, length_bins, position, shares, ticks
from tests.helpers.calibration_report import build_report

FILES = ("report.html", "verdict.json", "table.json", "difference.png", "by_domain.png")


class Page(HTMLParser):
    """Text, tags and attributes; complains about tags that are not closed."""

    VOID = ("meta", "br", "hr", "img", "input", "link", "line", "circle", "rect", "path")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text.append(data)


@pytest.fixture
def page(disk, tmp_path) -> Page:
    build_report(disk, tmp_path / "out")
    return Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))


def test_the_verdict_comes_first_and_everything_is_there(disk, page, tmp_path):
    verdict = read_json(tmp_path / "out" / "verdict.json")
    text = re.sub(r"\s+", " ", " ".join(page.text))
    places = [text.index(part) for part in (verdict["headline"], *verdict["sentences"], "What was compared")]
    assert places == sorted(places)
    for pair in disk.evaluations:
        assert pair in text
    for command in ("plumbline run", "evaluation@random-w4a16-rtn", "plumbline audit data/quantized_model/random-w4"):
        assert command in text
    for term in ("KL divergence", "Perplexity", "plumbline run", "As close to production", "no tokens", "b" * 64):
        assert term in text
    assert "one scale per group of 128 (40 layers) and 43 (5 layers) weights" in text


def test_out_of_domain_figures_stand_beside_where_there_are_some(disk, page, tmp_path):
    verdict = (tmp_path / "out" / "verdict.json").read_bytes()
    assert "out of domain" not in " ".join(page.text).lower()
    for path in disk.evaluations.values():
        metrics = read_json(path / "metrics.json")
        others = {"kl_mean": 3 * metrics["kl_mean"], "documents": 17, "tokens": 4321}
        write_json(path / "metrics.json", {**metrics, "out_of_domain": others})
    build_report(disk, tmp_path / "both")
    text = re.sub(r"\s+", " ", (tmp_path / "both" / "report.html").read_text(encoding="utf-8"))
    assert "Out of domain are 17 documents (4 321 tokens)" in text
    for row in read_json(tmp_path / "both" / "table.json"):
        metrics = read_json(disk.evaluations[f"{row['calibration']}-{row['scheme']}"] / "metrics.json")
        assert row["out_of_domain"] == 3 * metrics["kl_mean"]
        assert f'data-value="{row["out_of_domain"]}"' in text
    assert (tmp_path / "both" / "verdict.json").read_bytes() == verdict


def test_lengths_are_shown_where_there_is_more_than_one(disk, page, tmp_path):
    text = re.sub(r"\s+", " ", " ".join(page.text))
    assert "Short and long samples" in text and "1 to 256 tokens" in text and "over 256 tokens" in text
    for path in disk.evaluations.values():
        metrics = read_json(path / "metrics.json")
        write_json(path / "metrics.json", {**metrics, "by_length": metrics["by_length"][:1]})
    build_report(disk, tmp_path / "one")
    assert "Short and long samples" not in (tmp_path / "one" / "report.html").read_text(encoding="utf-8")


def test_of_a_set_the_verdict_is_shown_and_the_other_figures_are_a_click_away(page, tmp_path):
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    card = html[html.index("<li>As close to production") :].split("</div>", 1)[0]
    assert card.index("<details") < card.index("<li>Lengths: 2\u00a0%.") < card.index("</details>")


def test_distances_stand_on_what_random_draws_get(page, tmp_path):
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    part = html[html.index("Distance from the tuning split, beside chance") :].split("</section>")[0]
    assert part.count("<tr>") == 1 + 2 and "1 distance is the same for every set" in part
    assert "token &lt;i&gt;ids&lt;/i&gt;" in part and "nothing" not in part
    # The axis reaches from -2.9 to 6.4, with the null's median at 0 and its 95th percentile at 1.
    at = {value: f"{100 * (value + 2.9) / 9.3:.2f}%" for value in (-1.0, -0.5, 0.0, 6.0)}
    assert part.count(f'<rect class="band" x="{at[-1.0]}" y="5" width="{100 * 2 / 9.3:.2f}%"') == 2 * 3
    assert part.count(f'cx="{at[-0.5]}"') == 3 and part.count(f'x1="{at[0.0]}"') == 2 * 3
    assert part.count(f'<svg x="{at[6.0]}" y="10"><path class="worse"') == 3


def test_what_it_takes_is_counted_and_no_seconds_are_written(disk, page, tmp_path):
    text = re.sub(r"\s+", " ", " ".join(page.text))
    for choice, path in disk.sets.items():
        manifest, folder = read_json(path / "manifest.json"), disk.statistics[choice]
        size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
        assert f"{choice} 1 234 8 {manifest['tokens']:,} {size:.1f}".replace(",", " ") in text
    assert "each of the 9 models reads the 18 000 held-out tokens" in text
    for choice in disk.sets:
        assert f"{choice}: the largest values at 2 layer inputs come from 1 of 8 samples, 2 of them from one" in text
    assert "no range would shrink by more than 50 % (model.layers.10.mlp.down_proj)" in text


def test_layers_are_shown_in_the_models_order_where_their_errors_are_known(disk, page, tmp_path):
    text = re.sub(r"\s+", " ", " ".join(page.text))
    assert "chosen w4a16-gptq 0.70 % 1.1 % model.layers.10.mlp.down_proj" in text
    every = [
        f"model.layers.{n}.mlp.down_proj w4a16-rtn {share} {share} {share}"
        for n, share in ((2, "0.30 %"), (10, "1.1 %"))
    ]
    assert " ".join(every) in text
    for path in disk.evaluations.values():
        write_json(path / "metrics.json", {**read_json(path / "metrics.json"), "layer_errors": {}})
    build_report(disk, tmp_path / "none")
    assert "Layer by layer" not in (tmp_path / "none" / "report.html").read_text(encoding="utf-8")


def test_nothing_comes_from_elsewhere(page, tmp_path):
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "http" not in html and "@import" not in html and "url(" not in html
    assert not [a for _, a in page.tags if "src" in a]
    links = [a["href"] for _, a in page.tags if "href" in a]  # pages of the same workspace, opened by a click
    assert links == [f"../sample_page/{name}/samples.html" for name in ("random", "chosen", "off-domain")]


def test_what_comes_from_data_is_escaped(page):
    assert "b" not in [tag for tag, _ in page.tags]
    assert any("<b>code</b>" in text for text in page.text)


def test_the_table_sorts_by_number(page, tmp_path):
    rows = read_json(tmp_path / "out" / "table.json")
    shown = ("kl_mean", "difference", "kl_p99", "kl_p999", "perplexity_quantized", "top1_agreement", "rms_delta_p")
    expected = [row[name] for row in rows for name in (*shown, "share", "bits_per_weight", "weights_bytes")]
    values = [a["data-value"] for tag, a in page.tags if tag == "td" and "data-value" in a][: len(expected)]
    assert [None if value == "" else float(value) for value in values] == expected
    tables = [a["class"].split() for tag, a in page.tags if tag == "table" and "class" in a]
    assert sum("sortable" in of for of in tables) >= 7
    assert [(row["scheme"], row["calibration"]) for row in rows][:2] == [
        ("w4a16-rtn", "random"),
        ("w4a16-rtn", "chosen"),
    ]
    assert rows[0]["verdict"] == "baseline" and rows[1]["verdict"] == "identical"


def test_the_same_study_gives_the_same_bytes(disk, tmp_path):
    first, second = (build_report(disk, tmp_path / name) for name in ("a", "b"))
    assert first == second
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert str(tmp_path) not in (tmp_path / "a" / "report.html").read_text()


def test_summary_counts(disk, tmp_path):
    summary = build_report(disk, tmp_path / "out")
    assert {key: summary[key] for key in ("better", "worse", "no_difference_detected", "identical")} == {
        "better": 0,
        "worse": 2,
        "no_difference_detected": 2,
        "identical": 2,
    }


def test_a_set_that_changed_after_quantization_is_an_error(disk, tmp_path):
    path = disk.evaluations["chosen-w3a16-gptq"] / "metrics.json"
    write_json(path, read_json(path) | {"calibration_set": "old"})
    with pytest.raises(ValueError, match="chosen-w3a16-gptq was calibrated with a set of digest old"):
        build_report(disk, tmp_path / "out")


def test_one_choice_and_few_documents_still_give_a_page(tmp_path):
    from tests.helpers.calibration_report import Disk

    disk = Disk(tmp_path, documents=4)
    disk.grid = {"calibrations": ["random"], "schemes": ["w4a16-rtn"]}
    build_report(disk, tmp_path / "out")
    Page((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))


def test_scales():
    assert ticks(-0.21, 0.13, 4) == pytest.approx([-0.2, -0.1, 0.0, 0.1])
    assert ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert ticks(-3e-5, 4e-5, 4) == pytest.approx([-2e-5, 0, 2e-5, 4e-5])
    assert around_zero([0.1, None, 0.2]) == pytest.approx((-0.01, 0.21))
    assert around_zero([]) == (-0.01, 0.01)
    assert position(0.5, -0.5, 1.5) == "50.00%"
    bins = length_bins([np.array([20, 64]), np.array([65, 1000])])
    assert bins == [32, 64, 128, 256, 512, 1024]
    assert shares(np.array([20, 32, 33, 1000]), bins) == [0.5, 0.25, 0, 0, 0, 0.25]


def test_the_base_model_is_named_with_revision_and_digest(page, tmp_path):
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert f"org/base at revision {'c' * 40} (digest {'b' * 12})" in html
    assert read_json(tmp_path / "out" / "verdict.json")["base_model"]["name"] == "org/base"
