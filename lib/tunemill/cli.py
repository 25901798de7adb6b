"""The command line: ``tunemill <job> ...`` and ``python jobs/<job>.py ...`` are this same program.

This module parses flags, prints help and maps errors to exit codes; what a job does stands in
``jobs/<job>.py``, which calls :func:`parse`, composes stages and reports.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.metadata
import logging
import os
import sys
import tempfile
import textwrap
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from tunemill.config import build, flags_of, load_yaml, set_flag
from tunemill.errors import BadInput, ConfigError, TunemillError, root_cause
from tunemill.progress import Progress

__all__ = ["JOBS", "Command", "Options", "Parsed", "main", "parse", "run_main"]

C = TypeVar("C")

JOBS: Mapping[str, tuple[str, str]] = {
    "run": ("pipeline", "the whole pipeline of a configuration, resumable"),
    "plan": ("plan", "calls, tokens, cost and hours of a configuration; calls nobody"),
    "generate": ("generate", "ask models for labelled texts"),
    "clean": ("clean", "strip padding from answers: one target text each"),
    "embed": ("embed", "texts to unit vectors"),
    "dedup": ("dedup", "remove near-duplicates, exactly"),
    "split": ("split", "train, validation and test without near-duplicates across"),
    "template": ("template", "chat template, token ids and loss weights, proven right"),
    "finetune": ("finetune", "LoRA fine-tuning on Ray Train"),
    "evaluate": ("evaluate", "label probabilities before and after tuning"),
    "export": ("export", "the kept rows as a Hugging Face DatasetDict with its card"),
    "merge": ("merge", "the adapter merged into its base model"),
    "report": ("report", "the HTML page of a finished or running run"),
    "submit": ("submit", "hand a run to a Ray cluster as a Ray Job"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Flags that every job understands."""

    config: str | None = None
    """YAML file with one section for each stage; flags win over it."""
    overwrite: bool = False
    """Replace finished output that was made with other settings (a journal of paid answers is never deleted)."""
    quiet: bool = False
    """Only one line for each finished stage."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """How one job is called."""

    job: str
    usage: str
    config_type: type
    section: str | None = None
    """The section of the YAML file that holds ``config_type``; None when it is the whole file."""
    options_type: type = Options
    positional: str | None = None
    """Name of the one argument without a flag, if the job takes one."""
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Other spellings of flags, as ``flag: field``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parsed(Generic[C]):
    """A parsed command line."""

    options: Any
    values: dict[str, Any]
    """The job's section as laid together from file and flags, unchecked."""
    file_values: dict[str, Any]
    """The whole YAML file."""
    where: str
    positional: str | None

    def progress(self) -> Progress:
        """Progress as the options ask for it."""
        return Progress(quiet=self.options.quiet)


def parse(command: Command, argv: Sequence[str]) -> Parsed[Any]:
    """Parse flags into options and the values of the job's config. ConfigError in one line; SystemExit(0) after ``--help``."""
    if any(argument in ("-h", "--help") for argument in argv):
        sys.stdout.write(help_text(command))
        raise SystemExit(0)
    option_fields = {field.name: field for field in dataclasses.fields(command.options_type)}
    options: dict[str, Any] = {}
    flags: list[tuple[str, str]] = []
    positional: list[str] = []
    for name, text in _pairs(argv, command, positional):
        key = name.replace("-", "_")
        if key in option_fields and not (key == "config" and "." in name):
            set_flag(command.options_type, options, key, text)
        else:
            flags.append((name, text))
    if positional and (command.positional is None or len(positional) > 1):
        raise ConfigError(f"tunemill {command.job}: unexpected argument {positional[-1]!r}; see tunemill {command.job} --help")
    built: Any = build(command.options_type, options, f"tunemill {command.job}")
    path = getattr(built, "config", None)
    file_values = load_yaml(_typed(path)) if path else {}
    where = f"config file {path}" if path and not flags else "flags" if not path else f"config file {path} with flags"
    values = dict(file_values.get(command.section) or {}) if command.section else dict(file_values)
    for name, text in flags:
        prefix = f"{command.section}." if command.section else ""
        field = command.aliases.get(name.replace("-", "_"), name).removeprefix(prefix)
        set_flag(command.config_type, values, field, text)
    return Parsed(
        options=built, values=values, file_values=file_values, where=where, positional=positional[0] if positional else None
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the console script ``tunemill``."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(_overview())
        raise SystemExit(0 if arguments else 2)
    if arguments[0] in ("-V", "--version"):
        sys.stdout.write(f"tunemill {importlib.metadata.version('tunemill')}\n")
        raise SystemExit(0)
    job = arguments[0]
    if job not in JOBS:
        near = difflib.get_close_matches(job, list(JOBS), n=1)
        sys.stderr.write(f"tunemill: unknown job {job!r}{f', did you mean {near[0]!r}?' if near else ''}; see tunemill --help\n")
        raise SystemExit(2)
    module = importlib.import_module(f"tunemill_jobs.{JOBS[job][0]}")
    run_main(module.run, arguments[1:], job)


def run_main(run: Callable[[Sequence[str]], None], argv: Sequence[str], job: str) -> None:
    """Call a job and end the process with its exit code: 0 done, 1 the run failed, 2 bad configuration or input."""
    _set_up_process()
    try:
        run(argv)
    except KeyboardInterrupt:
        sys.stderr.write(f"\nstopped. What was finished is kept; go on with the same command: tunemill {job} {' '.join(argv)}\n")
        sys.stderr.flush()
        os._exit(1)
    except SystemExit:
        raise
    except Exception as error:  # noqa: BLE001 - the one place where every error becomes a line and an exit code
        known = root_cause(error)
        sys.stderr.write(f"\n{_failure(known, error)}\n")
        raise SystemExit(known.exit_code if known is not None else 1) from None
    raise SystemExit(0)


def _failure(known: TunemillError | None, error: BaseException) -> str:
    if os.environ.get("TUNEMILL_DEBUG"):
        return "".join(traceback.format_exception(error))
    if known is not None:
        kind = "error" if isinstance(known, BadInput) else "failed"
        return f"tunemill: {kind}: {known}"
    with tempfile.NamedTemporaryFile("w", prefix="tunemill-error-", suffix=".txt", delete=False) as file:
        traceback.print_exception(error, file=file)
    first = (str(error).strip().splitlines() or [""])[-1]
    return f"tunemill: failed: {type(error).__name__}: {first[:300]} (whole trace: {file.name})"


def _set_up_process() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    logging.getLogger("tunemill").setLevel(logging.INFO)
    # DeepSpeed sets its own level when it is imported; what it says below an error (no accelerator found) helps nobody.
    logging.getLogger("DeepSpeed").addFilter(lambda record: record.levelno >= logging.ERROR)
    quiet = {
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_VERBOSITY": "error",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "PYTHONWARNINGS": "ignore",
    }
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    # Workers of a local Ray inherit the environment, so the console scripts beside this Python (ninja) are found.
    beside = str(Path(sys.executable).parent)
    if beside not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = beside + os.pathsep + os.environ.get("PATH", "")
    import warnings

    warnings.filterwarnings("ignore")


def _pairs(argv: Sequence[str], command: Command, positional: list[str]) -> list[tuple[str, str]]:
    """The flags as (name without dashes, value); a flag without a value means true."""
    booleans = {f.name for f in dataclasses.fields(command.options_type) if f.type in ("bool", bool)}
    booleans |= {flag.path for flag in flags_of(command.config_type) if flag.type_name == "bool"}
    pairs: list[tuple[str, str]] = []
    index = 0
    while index < len(argv):
        argument = argv[index]
        index += 1
        if not argument.startswith("--"):
            positional.append(argument)
            continue
        name, equals, value = argument[2:].partition("=")
        if equals:
            pairs.append((name, value))
            continue
        following = argv[index] if index < len(argv) else None
        field = command.aliases.get(name.replace("-", "_"), name).replace("-", "_")
        bare = field.removeprefix(f"{command.section}.") in booleans
        if following is None or following.startswith("--") or (bare and following.lower() not in ("true", "false")):
            if not bare:
                known = _nearest_flag(name, command)
                raise ConfigError(f"tunemill {command.job}: flag --{name} {known or 'needs a value'}")
            pairs.append((name, "true"))
            continue
        pairs.append((name, following))
        index += 1
    return pairs


def _nearest_flag(name: str, command: Command) -> str | None:
    known = [f.name for f in dataclasses.fields(command.options_type)] + [f.path for f in flags_of(command.config_type)]
    key = name.replace("-", "_")
    if key in known or any(path.startswith(f"{key}.") for path in known):
        return None
    near = difflib.get_close_matches(key, known, n=1)
    return f"is unknown{f', did you mean --{near[0]}?' if near else ''}"


def _typed(path: str) -> Path:
    from tunemill.store import typed_cwd

    # Under `ray job submit` the working directory is shipped, so a file beside it is found there first.
    return Path(path) if Path(path).exists() else Path(typed_cwd()) / path


def help_text(command: Command) -> str:
    """The ``--help`` page of a job: its usage, its options, the fields of its config with their docs."""
    lines = [f"tunemill {command.job}: {JOBS[command.job][1]}", "", command.usage.strip(), ""]
    lines += ["options:", *_flag_lines(command.options_type)]
    lines += ["", "settings (flags win over the file; dashes or underscores):", *_flag_lines(command.config_type)]
    return "\n".join(lines) + "\n"


def _flag_lines(config_type: type) -> list[str]:
    lines = []
    for flag in flags_of(config_type):
        lines.append(
            f"  --{flag.path.replace('_', '-')} {flag.type_name.upper() if '|' not in flag.type_name else flag.type_name}"
        )
        default = "" if flag.default in ("null", '""') else f" (default: {flag.default})"
        lines += textwrap.wrap(f"{flag.doc}{default}", width=100, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return lines


def _overview() -> str:
    lines = ["tunemill turns prompts or raw conversations into a tuned model, on Ray.", "", "usage: tunemill JOB [flags]", ""]
    lines += [f"  {name:<10} {text}" for name, (_, text) in JOBS.items()]
    lines += [
        "",
        "tunemill JOB --help shows a job's flags. Start with: tunemill run --config jobs/configs/quickstart.yaml",
        "Exit codes: 0 done, 1 the run failed, 2 bad configuration or input.",
    ]
    return "\n".join(lines) + "\n"
