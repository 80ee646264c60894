"""Verification: the shares, and the shipped model measured on fewer trials than the card's."""

from __future__ import annotations

import json

import pytest

from analysis.model.verify import Share, verify_model


def test_the_interval_is_wilsons():
    scipy_stats = pytest.importorskip("scipy.stats")
    for hits, trials in ((0, 20), (3, 20), (997, 1000), (20, 20)):
        low, high = Share(hits, trials).interval
        expected = scipy_stats.binomtest(hits, trials).proportion_ci(method="wilson")
        assert low == pytest.approx(expected.low, abs=1e-9)
        assert high == pytest.approx(expected.high, abs=1e-9)


def test_the_shipped_model_counts_and_reads_its_context(model, vmfb):
    output: list[str] = []
    report = verify_model(model, vmfb, trials=120, seed=4, progress=output.append)
    assert report.reported_right
    assert report.overall_accuracy.share >= 0.97
    assert report.as_dict()["sensitivity"]["all"]["share"] >= 0.9
    assert max(share.share for share in report.last_two_tokens.values()) <= 0.2
    assert max(share.share for share in report.last_page.values()) <= 0.2
    assert report.is_counting_model
    tokens = sum(found.tokens for found in report.overread.values())
    assert tokens == 4 * (120 // 10) * 14
    assert len(output) == 6
    assert json.loads(json.dumps(report.as_dict()))["checksum"] == model.checksum


def test_the_same_seed_gives_the_same_report(model, vmfb):
    assert verify_model(model, vmfb, trials=10) == verify_model(model, vmfb, trials=10)
