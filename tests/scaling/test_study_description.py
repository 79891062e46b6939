"""A report is told how its study was made, and whether steps were timed alone."""

from __future__ import annotations

import json

import pytest

from toolkit.scaling import Study
from toolkit.scaling.study_description import describe_study

pytestmark = pytest.mark.usefixtures("untimed")


def test_the_report_is_told_how_it_was_made(small: Study) -> None:
    told = describe_study(small, "A title", "A question?")
    assert (told.title, told.question, told.config) == ("A title", "A question?", "grid: small\n")
    assert told.planned_runs == tuple(run.name for run in small.runs)
    assert told.precision == "32-true"
    assert any(small.prepared.digest[:16] in line for line in told.corpus)
    assert any("20 validation windows of 32 tokens" in line for line in told.conventions)


@pytest.mark.parametrize(("load", "shared"), [(0.9, False), (3.25, True)])
def test_the_report_is_told_when_steps_were_not_timed_alone(small: Study, load: float, shared: bool) -> None:
    small.claim_folder()
    small.folder.step_load.write_text(json.dumps(load))
    told = describe_study(small, "A title", "A question?").seconds_source
    assert ("shared" in told) == shared
    assert ("load average 3.25" in told) == shared
