"""kill -9 in the middle of writing: no file of patches is ever torn, and a second run ends with the same bytes."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from forked import Forked

from histoloom.config import dump_config
from histoloom.slides import stage

RUN = """
import os
import sys
from pathlib import Path
from histoloom.config import load_config
from histoloom.slides import stage
from histoloom.run.stage import EventLog, StageContext
if __name__ == "__main__":
    os.setsid()  # its workers are killed with it
    out = Path(sys.argv[2])
    stage.run(StageContext(out.parent, load_config(Path(sys.argv[1])), out, {}, EventLog(out / "log.jsonl")))
"""


def images(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "images").glob("*.npy"))}


def written(folder: Path) -> int:
    """Bytes of patches so far, finished or not."""
    sizes = (path.stat().st_size for path in folder.glob("images/*.part") if path.exists())
    try:
        return sum(sizes)
    except FileNotFoundError:
        return 0


def kill_while_writing(command: list[Path], *, out: Path, least: int) -> bool:
    """Start the stage and kill it, workers too, once a file that it writes holds ``least`` bytes; False where it ended
    before.
    """
    process = Forked(*command).process
    while process.is_alive():
        if written(out) >= least:
            assert process.pid is not None
            os.killpg(process.pid, signal.SIGKILL)
            process.join()
            return process.exitcode == -signal.SIGKILL
        time.sleep(0.0005)
    return False


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
@pytest.mark.parametrize("workers", [1, 2])
def test_kill_leaves_no_torn_record(slide_folder, configured, context, tmp_path, workers):
    config = configured(slide_folder, patches={"size": 64, "count": 1200}, workers=workers)
    whole, broken = context(config, name="whole"), context(config, name="broken")
    stage.run(whole)
    expected = images(whole.out)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    (tmp_path / "run.py").write_text(RUN)
    command = [tmp_path / "run.py", tmp_path / "config.yaml", broken.out]
    size = min(map(len, expected.values()))
    assert kill_while_writing(command, out=broken.out, least=size // 3), "it was quicker than the test"
    left = images(broken.out)
    assert len(left) < len(expected)
    assert list(broken.out.glob("images/*.part")), "it was killed in the middle of a file"
    assert not (broken.out / "meta.json").exists()
    assert all(expected[name] == data for name, data in left.items())
    stage.run(broken)
    assert images(broken.out) == expected
    assert not list(broken.out.glob("images/.*.part"))
    for name in ("index.parquet", "slides.parquet", "meta.json"):
        assert (broken.out / name).read_bytes() == (whole.out / name).read_bytes()
    for path in (broken.out / "images").glob("*.npy"):
        assert len(np.load(path, mmap_mode="r")) > 0
