"""The page: every number is one worked by hand, nothing is loaded, nothing of a run is taken for HTML."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

from helpers.made_runs import make_run, make_study

from workbench.report import compare
from workbench.report.page import contrast_with_black, heat_style, report_page
from workbench.report.sections import SHADES

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Tables(HTMLParser):
    """The tables of a page by caption, each a list of rows of texts; and the tags that were opened and not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: dict[str, list[list[str]]] = {}
        self.open: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self._caption: list[str] = []
        self._rows: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data", "srcset")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID and "/" not in tag:
            self.open.append(tag)
        if tag == "table":
            self._caption, self._rows = [], []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag
        if tag == "table":
            self.found[" ".join("".join(self._caption).split())] = self._rows

    def handle_data(self, data: str) -> None:
        if "caption" in self.open:
            self._caption.append(data)
        elif self.open and {"td", "th"} & {*self.open[-4:]} and self._rows and self._rows[-1]:
            self._rows[-1][-1] = " ".join(f"{self._rows[-1][-1]} {data}".split())


def page_of(*folders: Path) -> tuple[str, Tables]:
    text = report_page(compare(list(folders)), folders[0]).read_text(encoding="utf-8")
    return text, Tables(text)


def test_every_number_is_the_one_worked_by_hand(tmp_path: Path) -> None:
    """a ends at 0.5, 0.6 and 0.7: the means differ by 0.05 a seed, t = 4.303, s / √3 = 0.0289; or twice that."""
    _, page = page_of(make_study(tmp_path / "made"))
    assert page.open == []
    (scores,) = (rows for caption, rows in page.found.items() if caption.startswith("Scores"))
    row = {cells[0]: cells[1:] for cells in scores}["lora"]
    assert row[:7] == [
        "3",
        "0.700 ± 0.124",
        "-0.300 ± 0.248",
        "0.100 ± 0.000",
        "0.300 ± 0.248",
        "0.850 ± 0.000",
        "-0.100 ± 0.000",
    ]
    assert row[7:11] == ["15.6 K", "100", "6", "120"]
    assert row[12:14] == ["3 s", "1 s"]
    full = page.found["Means over runs: parameters, optimizer steps, tokens, rows; seconds; bytes"]
    assert full[1][1:5] == ["15,552", "100", "6", "120"]
    less = page.found["Less seqft, order default"]
    assert less[1] == ["lora", *["0.000 ± 0.000"] * 6]
    assert page.found["The numbers of the figure"][1] == ["seqft", "0.300 ± 0.248", "0.850 ± 0.000", "3 s"]


def test_a_matrix_is_there_for_each_seed_and_for_their_mean(tmp_path: Path) -> None:
    _, page = page_of(make_study(tmp_path / "made"))
    mean, second = (page.found[f"lora, order default, {which}"] for which in ("mean over seeds", "seed 1"))
    assert mean[0] == ["after", "a", "b", "p"]
    assert mean[1:] == [
        ["0 untouched", "0.10", "0.20", "0.50"],
        ["1 a", "0.90", "0.30", "0.50"],
        ["2 b", "0.60", "0.80", "0.40"],
    ]
    assert second[3] == ["2 b", "0.60", "0.80", "0.40"]
    assert page.found["lora, order default, seed 2"][3] == ["2 b", "0.70", "0.80", "0.40"]


def test_time_loss_and_rows_are_in_tables(tmp_path: Path) -> None:
    _, page = page_of(make_study(tmp_path / "made"))
    course = page.found["a (accuracy) after each task, order default"]
    assert course[0] == ["tasks learnt", "0", "1", "2"]
    assert course[1] == ["seqft", "0.10 ± 0.00", "0.90 ± 0.00", "0.60 ± 0.25"]
    assert page.found["p (accuracy) after each task, order default"][2][1:] == [
        "0.50 ± 0.00",
        "0.50 ± 0.00",
        "0.40 ± 0.00",
    ]
    lost = page.found["lora: right after the domain was learnt, and in the end"]
    assert lost[1] == ["a", "0.90", "0.60", "0.95", "0.65", "1.10", "1.40"]
    assert lost[2] == ["b", "0.80", "0.80", "–", "–", "1.20", "1.20"]
    rows = page.found["Rows, primary metric, and what the commonest answer alone would score"]
    assert rows[1:] == [
        ["a", "domain", "8", "10", "accuracy", "0.38 (yes)"],
        ["b", "domain", "8", "10", "accuracy", "–"],
        ["p", "probe", "–", "10", "accuracy", "–"],
    ]


def test_answers_are_text_whatever_a_model_says(tmp_path: Path) -> None:
    text, page = page_of(make_study(tmp_path / "made", seeds=1))
    assert "</script><b>" not in text
    assert text.count("</script>") == 1
    answers = page.found["Is <i>it</i> so? Expected: yes"]
    assert answers[0] == ["strategy", "before", "right after", "in the end"]
    assert answers[1] == ["seqft", "what?", "</script><b>no</b>", "</script><b>no</b>"]  # of b, which is learnt last
    assert '<td class="hit">yes</td>' in text  # of a
    assert "made # &lt;lora&gt;" in text.replace("  ", " ")


def test_nothing_is_loaded_and_no_id_is_given_twice(tmp_path: Path) -> None:
    text, page = page_of(make_study(tmp_path / "made"))
    targets = {link.removeprefix("#") for link in page.links if link.startswith("#")}
    assert {link for link in page.links if not link.startswith("#")} == {"data:,"}
    assert targets <= {*page.ids}
    assert len(page.ids) == len({*page.ids})
    assert not re.search(r"@import|url\((?!#)|https?:", text)


def test_the_same_runs_make_the_same_page(tmp_path: Path) -> None:
    study = make_study(tmp_path / "made", seeds=1)
    assert page_of(study)[0] == page_of(study)[0]


def test_two_seeds_have_no_interval(tmp_path: Path) -> None:
    text, page = page_of(make_study(tmp_path / "made", seeds=2))
    (scores,) = (rows for caption, rows in page.found.items() if caption.startswith("Scores"))
    assert scores[1][2] == "0.675"
    assert 'class="spread"' not in text


def test_several_orders_have_a_table_each_and_one_of_their_means(tmp_path: Path) -> None:
    study = make_study(tmp_path / "made", ["lora"], seeds=1)
    make_run(study, "lora", 2, order_name="other")
    text, page = page_of(study)
    means = [rows[1][2] for caption, rows in page.found.items() if caption.startswith("Scores")]
    assert means == ["0.700", "0.650", "0.750"]
    assert text.count("<option") == 3 + 2


def test_an_unfinished_run_is_told_and_stands_in_no_table_but_its_own(tmp_path: Path) -> None:
    study = make_study(tmp_path / "made", ["seqft"], seeds=1)
    run = make_run(study, "lora", 0, rows=2)
    text, page = page_of(study)
    assert "is not finished: 1 of 2 tasks" in text
    assert all(cells[0] != "lora" for rows in page.found.values() for cells in rows)
    assert page.found[f"{run}, 1 of 2 tasks"][1:] == [
        ["0 untouched", "0.10", "0.20", "0.50"],
        ["1 a", "0.90", "0.30", "0.50"],
        ["2 b", "–", "–", "–"],
    ]


def test_a_study_without_a_finished_run_has_a_page_too(tmp_path: Path) -> None:
    make_run(tmp_path / "made", "lora", 0, rows=1)
    text, page = page_of(tmp_path / "made")
    assert "No run has come to its end yet." in text
    assert page.open == []
    assert [caption for caption in page.found if caption.startswith("Scores")] == []


def test_runs_without_predictions_or_likelihood_are_shown_with_what_they_have(tmp_path: Path) -> None:
    run = make_run(tmp_path / "made", "lora", 0)
    shutil.rmtree(run / "predictions")
    (run / "nll.csv").unlink()
    text, page = page_of(tmp_path / "made")
    assert "No run has kept its answers to a." in text
    assert page.found["lora: right after the domain was learnt, and in the end"][1][5:] == ["–", "–"]


def test_every_shade_can_be_read() -> None:
    """4.5 : 1 is what WCAG asks of small text; white's contrast is 21 over black's."""
    rules = re.findall(r"\.h(\d+)\{background:#(\w{6});color:#(000|fff)\}", heat_style())
    assert [int(place) for place, _, _ in rules] == list(range(SHADES + 1))
    for _, color, ink in rules:
        dark = contrast_with_black([int(color[start : start + 2], 16) / 255 for start in (0, 2, 4)])
        assert (dark if ink == "000" else 21 / dark) >= 4.5
