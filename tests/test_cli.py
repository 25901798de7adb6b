"""The command line: help, flags over files, and exit codes with one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tunemill.cli import JOBS, Command, Options, main, parse, run_main
from tunemill.errors import ConfigError, DataError, RunFailed
from tunemill.split.config import SplitConfig

COMMAND = Command(job="split", usage="usage: tunemill split", config_type=SplitConfig, section="split")


def _exit(call: Any, *arguments: Any) -> int:
    with pytest.raises(SystemExit) as caught:
        call(*arguments)
    return int(caught.value.code or 0)


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    """A flag replaces the value of the YAML section; dashes and underscores are the same."""
    (tmp_path / "c.yaml").write_text("split: {test_fraction: 0.3, label_column: y}\n")
    parsed = parse(COMMAND, ["--config", str(tmp_path / "c.yaml"), "--test-fraction", "0.2", "--split.validation_fraction=0"])
    assert parsed.values == {"test_fraction": "0.2", "label_column": "y", "validation_fraction": "0"}


def test_boolean_options_need_no_value() -> None:
    """--quiet and --overwrite stand alone and may be followed by another flag."""
    parsed = parse(COMMAND, ["--overwrite", "--quiet", "--test-fraction", "0.2"])
    assert parsed.options == Options(overwrite=True, quiet=True)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--test-fracton", "0.2"], "unknown, did you mean 'test_fraction'"),
        (["--test-fracton"], "unknown, did you mean --test_fraction"),
        (["--test-fraction"], "needs a value"),
        (["stray"], "unexpected argument 'stray'"),
        (["--config", "none.yaml"], "none.yaml: cannot be read"),
    ],
)
def test_wrong_flags_are_one_line(argv: list[str], message: str) -> None:
    """A typo names the nearest flag."""
    with pytest.raises(ConfigError, match=message):
        parse(COMMAND, argv)


@pytest.mark.parametrize("job", sorted(JOBS))
def test_every_job_has_help_with_its_settings(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    """tunemill JOB --help ends with code 0 and shows usage and documented flags."""
    assert _exit(main, [job, "--help"]) == 0
    page = capsys.readouterr().out
    assert page.startswith(f"tunemill {job}: ")
    assert "usage:" in page
    assert all(len(line) <= 140 for line in page.splitlines())


def test_the_overview_lists_every_job(capsys: pytest.CaptureFixture[str]) -> None:
    """tunemill --help names the jobs; an unknown job names the nearest."""
    assert _exit(main, ["--help"]) == 0
    page = capsys.readouterr().out
    assert all(f"  {job} " in page for job in JOBS)
    assert _exit(main, ["dedupe"]) == 2
    assert "did you mean 'dedup'" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "code"), [(DataError("row 3: bad"), 2), (RunFailed("worker lost"), 1), (ValueError("odd"), 1)])
def test_errors_become_a_line_and_an_exit_code(error: Exception, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Bad input ends with 2, a failed run with 1, and neither shows a traceback."""

    def job(argv: Any) -> None:
        raise error

    assert _exit(run_main, job, [], "split") == code
    shown = capsys.readouterr().err
    assert str(error) in shown
    assert "Traceback" not in shown


def test_an_error_inside_a_worker_is_unwrapped(capsys: pytest.CaptureFixture[str]) -> None:
    """What Ray wraps around a tunemill error does not hide it."""

    def job(argv: Any) -> None:
        try:
            raise DataError("input a.jsonl line 2: not valid JSON")
        except DataError as inner:
            raise RuntimeError("ray task failed") from inner

    assert _exit(run_main, job, [], "split") == 2
    assert capsys.readouterr().err.strip() == "tunemill: error: input a.jsonl line 2: not valid JSON"
