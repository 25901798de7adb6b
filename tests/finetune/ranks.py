"""One rank of a training run over gloo, without Ray: ``python ranks.py RANK WORLD FOLDER MODEL CHANGES...`` (JSON)."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

rank, world, folder, model = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
os.environ.update(
    RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world),
    MASTER_ADDR="127.0.0.1", MASTER_PORT="0", DS_ACCELERATOR="cpu",
)  # fmt: skip
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch.distributed as dist  # noqa: E402

from finetune.tiny import config, run  # noqa: E402


def main() -> None:
    """Train under each set of changes in turn; the first rank writes what it recorded."""
    from accelerate.state import AcceleratorState

    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    for number, text in enumerate(sys.argv[5:]):
        AcceleratorState._reset_state(reset_partial_state=True)
        changes = json.loads(text)
        resume = changes.pop("resume", None)
        done = run(config(model, **changes), folder / f"{number}-{rank}", workers=world, rank=rank, resume=resume)
        if rank == 0:
            (folder / f"{number}.json").write_text(json.dumps({"losses": done.losses, "validation": done.validation}))
    dist.destroy_process_group()


main()
