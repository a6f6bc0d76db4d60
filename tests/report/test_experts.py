"""The report of a mixture of experts: which experts serve which domain."""

import html
import json

import numpy as np
from written_run import HOSTILE, write_run

from versatune_ds.mixture.expert_shares import ExpertCounts
from versatune_ds.monitor.expert_file import ExpertFile
from versatune_ds.report.experts import expert_rows, experts_view, strip
from versatune_ds.report.page import render_page
from versatune_ds.report.series import read_series

COUNTS = np.array([[[30, 10, 0, 0]], [[10, 10, 10, 10]], [[0] * 4]])


def test_the_table_of_experts_has_each_domains_share_and_lift_and_the_map_a_cell_an_expert():
    counts = ExpertCounts(domain_names=("law", "code", "art"), counts_KLX=COUNTS, first_step=1, last_step=8)
    assert expert_rows(counts) == [
        ["law", "40", "layer 0 expert 0: 75.0%, lift 1.50", "", ""],
        ["code", "40", "layer 0 expert 2: 25.0%, lift 2.00", "layer 0 expert 3: 25.0%, lift 2.00",
         ""],
        ["art", "0", "", "", ""],
    ]  # fmt: skip
    cells = strip([0.75, 0.25, 0.0, 0.0], largest=0.75)
    assert cells.count("<rect") == 4
    assert 'x="0" width="1" height="1" fill-opacity="1.000"><title>expert 0: 75.0%' in cells
    assert 'x="1" width="1" height="1" fill-opacity="0.333"' in cells


def test_an_expert_that_serves_a_domain_no_more_than_the_mean_is_not_called_specific_to_it():
    def rows(*counts_KX):
        counts_KLX = np.array(counts_KX)[:, None]
        return expert_rows(ExpertCounts(domain_names=("law", "code"), counts_KLX=counts_KLX, first_step=1, last_step=8))

    # Law's only expert with an equal share serves code more: 0.5 / 0.7 = 0.71.
    assert rows([5, 2, 3], [9, 0, 1])[0] == ["law", "10", "none: no lift above 1", "", ""]
    assert rows([501, 499], [500, 500])[0][2] == "none: no lift above 1"  # 1.001 would read as 1.00
    assert rows([10, 0], [10, 0]) == [[name, "10", "none: no lift above 1", "", ""] for name in ("law", "code")]


def test_the_page_shows_experts_of_a_run_that_counted_them_whatever_its_domains_are_called(tmp_path):
    run_dir = write_run(tmp_path / "one", names=HOSTILE)
    assert experts_view(read_series(run_dir)) is None
    file = ExpertFile()
    file.add(COUNTS, num_steps=8)
    file.write(run_dir, domain_names=HOSTILE, step=40, is_last=True)
    page = render_page([read_series(run_dir)], now=0.0)
    assert "Counted over steps 33 to 40: 4 experts in each of 1 layers" in page
    assert HOSTILE[0] not in page
    assert "layer 0 expert 0: 75.0%, lift 1.50" in html.unescape(page)
    assert "<h4>Layer 0, where the domains differ most</h4>" in page
    one = ExpertCounts(domain_names=("law",), counts_KLX=COUNTS[:1], first_step=1, last_step=8)
    (run_dir / "experts.json").write_text(json.dumps(one.to_dict()), encoding="utf-8")
    assert "<h4>Layer 0</h4>" in render_page([read_series(run_dir)], now=0.0)
    (run_dir / "experts.json").write_text(json.dumps({"counts": {"law": 1}}), encoding="utf-8")
    assert "Which experts serve" not in render_page([read_series(run_dir)], now=0.0)


def test_the_file_of_experts_is_written_at_most_once_a_minute_and_at_the_end(tmp_path):
    seconds = iter([0, 30, 59, 61, 62])
    file, steps = ExpertFile(clock=lambda: next(seconds)), []
    file.write(tmp_path, domain_names=("law",), step=1, is_last=True)
    assert not (tmp_path / "experts.json").exists()  # a model without experts
    for step in range(1, 6):
        file.add(COUNTS[:1], num_steps=1)
        file.write(tmp_path, domain_names=("law",), step=step, is_last=step == 5)
        content = json.loads((tmp_path / "experts.json").read_text(encoding="utf-8"))
        steps.append((content["first_step"], content["last_step"], content["counts"]["law"][0][0]))
    assert steps == [(1, 1, 30), (1, 1, 30), (1, 1, 30), (1, 4, 120), (1, 5, 150)]
