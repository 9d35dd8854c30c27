"""The names, the sums and the text of metrics."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from pages import check_by_promtool, samples_of
from support import PATIENCE, ROOT, examples, tool

from netkit.ops.exposition import FAMILIES, Histogram, family_of, merged, sample, text_of


@examples(50)
@given(st.text(), st.floats(allow_nan=False, allow_infinity=False) | st.integers(0, 2**60))
def test_any_value_of_a_label_and_any_number_comes_out_as_it_went_in(
    value: str, number: float
) -> None:
    name = sample("netkit_connections", state=value)
    page = text_of({name: number})
    assert page.count("\n") == 3
    assert samples_of(page) == {f'netkit_connections{{state="{value}"}}': number}


def test_the_labels_of_a_sample_are_escaped() -> None:
    assert sample("x") == "x"
    assert sample("x", a='"\\\n', b="é") == r'x{a="\"\\\n",b="é"}'


def test_the_text_has_the_families_in_their_order_and_leaves_out_what_it_does_not_know() -> None:
    page = text_of(
        {"process_open_fds": 3, "unknown": 1, "netkit_ready": 1.0, "netkit_threads": 2.5}
    )
    assert page == (
        "# HELP netkit_ready 1 if the program wants new clients, else 0.\n"
        "# TYPE netkit_ready gauge\nnetkit_ready 1\n"
        "# HELP netkit_threads Threads of the processes that serve.\n"
        "# TYPE netkit_threads gauge\nnetkit_threads 2.5\n"
        "# HELP process_open_fds Open descriptors of the processes that serve.\n"
        "# TYPE process_open_fds gauge\nprocess_open_fds 3\n"
    )
    assert text_of({}) == ""


def test_processes_are_added_except_where_a_sum_says_nothing() -> None:
    certificate = sample("netkit_tls_certificate_expiry_seconds", name="*")
    one = {"netkit_threads": 2, "netkit_connections_limit": 10, certificate: 9, "unknown": 1}
    other = {"netkit_threads": 3, "netkit_connections_limit": 10, certificate: 5}
    assert merged([one, other]) == {
        "netkit_threads": 5,
        "netkit_connections_limit": 10,
        certificate: 5,
    }
    assert merged([]) == {}


def test_the_rules_for_alerts_in_the_documentation_are_valid_and_name_metrics_that_exist(
    tmp_path: Path,
) -> None:
    (rules,) = re.findall(
        r"```yaml\n(groups:.*?)```", (ROOT / "docs" / "operations.md").read_text(), re.DOTALL
    )
    for name in re.findall(r"\b(?:netkit|process)_\w+", rules):
        assert family_of(name), name
    (tmp_path / "rules.yml").write_text(rules)
    command = [tool("promtool"), "check", "rules", str(tmp_path / "rules.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_histogram_counts_each_value_in_every_bucket_that_it_fits() -> None:
    histogram = Histogram("netkit_connection_wait_seconds", 0.1, 1, 60)
    for value in (0, 0.1, 0.5, 60, 61):
        histogram.add(value)
    assert list(histogram.samples().items()) == [
        ('netkit_connection_wait_seconds_bucket{le="0.1"}', 2),
        ('netkit_connection_wait_seconds_bucket{le="1"}', 3),
        ('netkit_connection_wait_seconds_bucket{le="60"}', 4),
        ('netkit_connection_wait_seconds_bucket{le="+Inf"}', 5),
        ("netkit_connection_wait_seconds_sum", 121.6),
        ("netkit_connection_wait_seconds_count", 5),
    ]
    check_by_promtool(text_of(histogram.samples()))


def test_each_metric_is_named_as_prometheus_recommends_and_is_documented() -> None:
    documentation = (ROOT / "docs" / "operations.md").read_text()
    page = ""
    for family in FAMILIES:
        name, kind, text, _ = family
        assert family_of(name + "_sum" * (kind == "histogram")) is family
        assert f"`{name}" in documentation
        page += f"# HELP {name} {text}\n# TYPE {name} {kind}\n"
    check_by_promtool(page)
