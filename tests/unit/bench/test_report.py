"""Tables that set servers side by side."""

from bench import report
from tests.unit.bench.results import numbers

_BY_SERVER = {
    "llmis": numbers(
        tokens_per_s=300.0,
        requests_per_s=30.0,
        tokens_per_request=10.0,
        cpu_s_per_1k=0.5,
        cpu_by_role={"web": 0.1, "replica": 0.3, "redis": 0.05},
    ),
    "ff9b9a9": numbers(
        tokens_per_s=200.0,
        requests_per_s=20.0,
        tokens_per_request=10.0,
        cpu_s_per_1k=1.0,
        cpu_by_role={"web": 0.2, "replica": 0.3, "redis": 0.1},
    ),
    "llama.cpp": numbers(tokens_per_s=150.0, cpu_by_role={"llama.cpp": 0.4}),
}


def _rows(columns: tuple[report.Column, ...]) -> list[dict[str, str]]:
    text = report.side_by_side_table({"8 streams": _BY_SERVER}, columns=columns)
    titles, *rows = [line.split() for line in text.replace(" / ", "/").splitlines()]
    del titles[0]
    rows[0] = rows[0][2:]  # its label
    assert all(len(row) <= len(titles) for row in rows), "no cell has two words"
    return [dict(zip(titles, row, strict=False)) for row in rows]


_COLUMNS = (
    report.Column("tokens/s", lambda n: n.tokens_per_s, ",.0f"),
    report.Column("web", lambda n: n.cpu_by_role.get("web"), ".2f"),
    report.Column("other", lambda n: n.other_cores, ".2f", has_ratio=False),
)


def test_a_ratio_for_each_other_server() -> None:
    ours, before, theirs, to_before, to_theirs = _rows(_COLUMNS)
    assert ours == {"server": "llmis", "tokens/s": "300", "web": "0.10", "other": "1.00"}
    assert (before["server"], theirs["web"]) == ("ff9b9a9", "-")
    assert to_before == {"server": "llmis/ff9b9a9", "tokens/s": "1.50", "web": "0.50"}
    assert to_theirs == {"server": "llmis/llama.cpp", "tokens/s": "2.00", "web": "-"}


def test_a_server_that_stalled_has_no_ratio() -> None:
    text = report.side_by_side_table({"a": {"llmis": numbers(), "llama.cpp": None}})
    assert "stalled" in text
    assert "llmis /" not in text


def test_what_a_request_costs_each_process() -> None:
    by_title = {column.title: column for column in report.OF_REQUESTS}
    ours = _BY_SERVER["llmis"]
    assert by_title["requests/s"].cell(ours) == "30"
    shown = [by_title[title].cell(ours) for title in ("CPU ms/request", "web", "replica", "redis")]
    assert shown == ["5.00", "1.00", "3.00", "0.50"]
    assert by_title["redis"].ratio(ours, _BY_SERVER["ff9b9a9"]) == "0.50"


def test_the_cpu_time_of_tokens_is_shown_by_process() -> None:
    by_title = {column.title: column for column in report.OF_TOKENS}
    ours = _BY_SERVER["llmis"]
    shown = [by_title[title].cell(ours) for title in ("CPU s/1k", "web", "replica", "redis")]
    assert shown == ["0.500", "0.100", "0.300", "0.050"]
