"""The page of a training: its numbers, curves and settings."""

import re

import pytest

from palidecode.report.training import write_training


def line(step, **more):
    loss = 3.0 / step
    return {"step": step, "loss": loss, "rate": 1e-3, "norm": 1.0, "seconds": 2.0} | more


def page_of(tmp_path, log, **more):
    given = {"name": "arrows", "total": 40, "best": {}, "settings": {"rate": "0.001"}} | more
    write_training(tmp_path / "page.html", log, **given)
    return (tmp_path / "page.html").read_text()


def test_numbers_and_curves(tmp_path):
    log = [line(n, memory=1.5e9) for n in range(1, 41)]
    for number, ap in ((10, 0.25), (20, 0.5), (40, 0.375)):
        log[number - 1] |= {"segm AP": ap, "bbox AP": ap / 2}
    best = {"step": 20, "bbox AP": 0.25, "segm AP": 0.5}
    facts = [("model", "demo"), ("rows", "<b>.jsonl")]
    text = page_of(tmp_path, log, best=best, facts=facts)
    assert re.findall(r'<div class="card hero"><h3>(.*?)</h3><p class="value">(.*?)</p>', text) == [
        ("segm AP", "0.500")
    ]
    cards = dict(re.findall(r'<div class="card"><h3>(.*?)</h3><p class="value">(.*?)</p>', text))
    assert cards == {"bbox AP": "0.250", "loss": "0.075", "time": "80 s", "memory": "1.5 GB"}
    assert len(re.findall("<svg", text)) == 3
    rows = re.findall(r"<tr><td class=\"n\">(\d+)</td>.*?</tr>", text)
    assert rows == ["10", "20", "40"]
    assert re.search(r"<td class=\"n\">20</td>.*<td>kept</td>", text)
    assert "&lt;b&gt;.jsonl" in text
    assert "still running" not in text


def test_a_training_that_has_just_begun(tmp_path):
    text = page_of(tmp_path, [line(1, memory=0)])
    assert "1 of 40 steps" in text
    assert "still running" in text
    assert "Evaluations" not in text
    assert len(re.findall("<svg", text)) == 2


@pytest.mark.parametrize(
    ("seconds", "shown"), [(50, "50 s"), (90, "90 s"), (600, "10.0 min"), (90000, "25.0 h")]
)
def test_durations(tmp_path, seconds, shown):
    text = page_of(tmp_path, [line(1) | {"seconds": seconds}])
    assert f'<h3>time</h3><p class="value">{shown}</p>' in text


def test_a_long_log_makes_a_small_page(tmp_path):
    write_training(
        tmp_path / "page.html",
        [line(n) for n in range(1, 20_001)],
        name="long",
        total=20_000,
        best={},
        settings={},
    )
    assert (tmp_path / "page.html").stat().st_size < 150_000
