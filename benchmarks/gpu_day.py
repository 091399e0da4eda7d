"""What half an hour on a bare machine with one NVIDIA GPU gives: checks, speeds against plain loops, a generator.

The machine has Python 3.12 and PyTorch, and no internet. ``pack`` runs before, on a machine with internet: it collects
the wheels, the fields to train on and the weights of an earlier day in one folder of a bounded size. ``run`` is called
again until it says that everything is done: each call ends in time, the next continues. ``unpack`` makes a folder
for ``histoloom sample`` of the parts that were carried back.

    python benchmarks/gpu_day.py pack PACK --fields FOLDER [--weights OUT_OF_AN_EARLIER_DAY] [--present NAMES.txt]
    python benchmarks/gpu_day.py run --pack PACK --work WORK --out OUT --minutes 9.5
    python benchmarks/gpu_day.py unpack OUT --generator FOLDER

Each step is a process of its own. A step that fails leaves its traceback in the report, and the next one starts;
``--again NAME`` repeats it. A step that is cut off starts again in the next call, at most once more; the generator's
trainings continue from their checkpoint.
This file needs the standard library alone; the steps are in gpu_day_checks.py, gpu_day_speed.py, gpu_day_generator.py.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESERVE = 45.0
"""seconds at the end of a call, in which the results are written"""
LEAST_FOR_GENERATOR = 60.0
"""seconds below which the generator's training does not start"""
MOST_TRIES = 2
FILES, FILE_BYTES = 8, 16 * 2**20
"""what can be carried back"""
LOG_BYTES = 2**20
PRESETS = ("modern", "paper")


@dataclass(frozen=True)
class Step:
    """A step: ``module:function`` of this folder, with an argument, and its estimated seconds on an H100.

    ``endless``: it uses whatever time there is, over several calls.
    """

    name: str
    phase: int
    function: str
    seconds: float
    argument: str = ""
    endless: bool = False


STEPS = (
    Step("machine", 1, "gpu_day_checks:machine", 45),
    Step("losses", 2, "gpu_day_checks:losses", 90),
    Step("resume", 2, "gpu_day_checks:resume", 60),
    *(
        Step(f"{name}-{preset}", 3, f"gpu_day_speed:{name}", seconds, preset)
        for preset in PRESETS
        for name, seconds in (("vqgan", 120), ("clusterer", 45), ("unet", 90), ("sampling", 45))
    ),
    Step("pipeline", 2, "gpu_day_checks:pipeline", 150),
    Step("graphs-paper", 3, "gpu_day_speed:graphs", 180, "paper"),
    Step("generator", 4, "gpu_day_generator:train_generator", LEAST_FOR_GENERATOR, endless=True),
)
PACKING = Step("packing", 5, "gpu_day_generator:pack_generator", 15)


@dataclass(frozen=True)
class Day:
    """Where a day's files are, on what device it runs, and until when the step may take (``time.time()``).

    ``tiny``: networks and data of a test's size; ``settings``: ``key=value``, over the preset's.
    """

    pack: Path
    work: Path
    out: Path
    device: str
    tiny: bool
    until: float
    settings: tuple[str, ...] = ()

    def result(self, step: str) -> Path:
        """The file with a step's result."""
        return self.work / "results" / f"{step}.json"


@dataclass(frozen=True)
class Result:
    """A step's table and remarks for the report, and ``values`` that later steps read.

    ``goes_on``: the step has more to do in the next call.
    """

    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    remarks: tuple[str, ...] = ()
    values: dict[str, float] = field(default_factory=dict)
    goes_on: bool = False

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        write(path, json.dumps(asdict(self), indent=1))

    @staticmethod
    def load(path: Path) -> Result:
        """Read what ``save`` wrote."""
        values = json.loads(path.read_text(encoding="utf-8"))
        rows = tuple(tuple(row) for row in values.pop("rows"))
        return Result(**values | {"rows": rows, **{key: tuple(values[key]) for key in ("columns", "remarks")}})


@dataclass
class Record:
    """What became of a step: ``open``, ``done``, ``failed`` (with the end of its log) or ``cut off``."""

    state: str = "open"
    seconds: float = 0.0
    tries: int = 0
    error: str = ""


Launch = Callable[[Step, Day, Path], int]
"""Run a step in a process of its own until ``day.until``, its output in a file; returns the exit status, -9 if cut."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    packer = commands.add_parser("pack", help="collect wheels, fields and weights (needs internet)")
    packer.add_argument("folder", type=Path)
    packer.add_argument("--fields", type=Path, required=True, help="folder of JPEG fields to train on")
    packer.add_argument("--weights", type=Path, help="folder with the parts of an earlier day's generator")
    packer.add_argument("--present", type=Path, help="file of packages that the machine has, one name a line")
    packer.add_argument("--limit", type=float, default=64, help="MiB that can be carried, the checkout included")
    for name in ("run", "step"):
        runner = commands.add_parser(name)
        runner.add_argument("--pack", type=Path, required=True)
        runner.add_argument("--work", type=Path, required=True, help="folder that stays between the calls")
        runner.add_argument("--out", type=Path, required=True, help="folder of what is carried back")
        runner.add_argument("--device", default="auto")
        runner.add_argument("--tiny", action="store_true", help="of a test's size")
        runner.add_argument("--minutes", type=float, default=9.5, help="longest time of this call")
        if name == "run":
            runner.add_argument("--skip", nargs="+", default=[], choices=[step.name for step in STEPS])
            runner.add_argument("--again", nargs="+", default=[], help="steps to start again, whatever became of them")
        else:
            runner.add_argument("name", choices=[step.name for step in (*STEPS, PACKING)])
    unpacker = commands.add_parser("unpack", help="make a generator's folder of the parts")
    unpacker.add_argument("folder", type=Path)
    unpacker.add_argument("--generator", type=Path, required=True)
    given = parser.parse_args(arguments)

    if given.command == "pack":
        sys.path.insert(0, str(HERE))
        importlib.import_module("gpu_day_pack").pack(
            given.folder, fields=given.fields, weights=given.weights, present=given.present, limit=given.limit
        )
    elif given.command == "unpack":
        join_parts(given.folder, given.generator)
    else:
        day = Day(
            pack=given.pack.resolve(),
            work=given.work.resolve(),
            out=given.out.resolve(),
            device=given.device,
            tiny=given.tiny,
            until=time.time() + 60 * given.minutes,
        )
        if given.command == "step":
            run_step(next(step for step in (*STEPS, PACKING) if step.name == given.name), day)
        else:
            run(day, steps=[step for step in STEPS if step.name not in given.skip], again=given.again)


def run(day: Day, *, steps: Sequence[Step] = STEPS, launch: Launch | None = None, again: Sequence[str] = ()) -> bool:
    """One call: all steps that are open and fit into its time; whether everything is done.

    Steps of the names ``again`` are open, whatever became of them in earlier calls.
    """
    launch = launch or launch_process
    started, end = time.time(), day.until
    day.work.mkdir(parents=True, exist_ok=True)
    day.out.mkdir(parents=True, exist_ok=True)
    unpack_wheels(day)
    records = load_records(day, endless={step.name for step in steps if step.endless} | {PACKING.name})
    for step in [*steps, PACKING]:
        if step.name in again or step.name not in records:
            records[step.name] = Record()

    left = lambda: end - RESERVE - time.time()  # noqa: E731
    for step in steps:
        record = records[step.name]
        if record.state in ("done", "failed"):
            continue
        print(f"phase {step.phase}, {step.name}: about {step.seconds:.0f} s; {left():.0f} s left", flush=True)
        if step.seconds > left():
            print(f"{step.name} does not fit any more: the next call starts it", flush=True)
            if not step.endless:
                continue  # a shorter one, or the generator, may fit
            break
        # The generator takes what the other steps leave of this call.
        perform(step, day=day, until=end - RESERVE, record=record, records=records, launch=launch)

    perform(PACKING, day=day, until=end, record=records[PACKING.name], records=records, launch=launch)
    write_report(day, steps=[*steps, PACKING], records=records)
    missing = [step.name for step in steps if records[step.name].state not in ("done", "failed")]
    is_done = not missing
    print("everything is done" if is_done else f"call again for: {', '.join(missing)}", flush=True)
    print(f"this call took {time.time() - started:.0f} s", flush=True)
    return is_done


def perform(step: Step, *, day: Day, until: float, record: Record, records: dict[str, Record], launch: Launch) -> None:
    """Run a step and write down what became of it, before it starts and after."""
    record.tries += 1
    record.state = "cut off"  # what stays if this process is ended too
    save_records(day, records)
    log = day.work / "logs" / f"{step.name}.txt"
    log.parent.mkdir(exist_ok=True)
    started = time.time()
    status = launch(step, Day(**vars(day) | {"until": until}), log)
    record.seconds += time.time() - started

    if status == 0:
        record.state = "open" if Result.load(day.result(step.name)).goes_on else "done"
    elif status == -9:
        is_last = record.tries >= MOST_TRIES and not step.endless
        record.state, record.error = ("failed" if is_last else "cut off"), f"cut off after {record.seconds:.0f} s"
    else:
        record.state, record.error = "failed", log.read_text(encoding="utf-8", errors="replace")[-4000:]
    save_records(day, records)
    print(f"{step.name}: {record.state} after {time.time() - started:.1f} s", flush=True)


def launch_process(step: Step, day: Day, log: Path) -> int:
    """A step as a process, whose output goes to the file and to the terminal; -9 where its time is over."""
    command = [sys.executable, "-u", str(HERE / "gpu_day.py"), "step", step.name, "--device", day.device]
    command += ["--pack", str(day.pack), "--work", str(day.work), "--out", str(day.out)]
    command += ["--minutes", str(max(0.0, day.until - time.time()) / 60), *(["--tiny"] if day.tiny else [])]
    with log.open("ab") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment(day))
        try:
            # The endless step watches the time itself, and writes a checkpoint; a little longer than that is allowed.
            status = process.wait(timeout=max(1.0, day.until - time.time() + (RESERVE / 2 if step.endless else 0)))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            status = -9
    print(log.read_text(encoding="utf-8", errors="replace")[-3000:], flush=True)
    return status


def environment(day: Day) -> dict[str, str]:
    """The environment of a step: the unpacked wheels first, then the checkout."""
    paths = [day.work / "site", HERE.parent / "src", HERE]
    kept = [path for path in (os.environ.get("PYTHONPATH"),) if path]
    caches = {"TORCHINDUCTOR_CACHE_DIR": str(day.work / "inductor"), "HISTOLOOM_CACHE": str(day.work / "cache")}
    if (lpips := day.pack / "lpips").is_dir():
        caches["HISTOLOOM_WEIGHTS"] = str(lpips)
    return os.environ | caches | {"PYTHONPATH": os.pathsep.join([*map(str, paths), *kept]), "HF_HUB_OFFLINE": "1"}


def run_step(step: Step, day: Day) -> None:
    """What a step's process does."""
    module, function = step.function.split(":")
    sys.path.insert(0, str(HERE))
    arguments = [step.argument] if step.argument else []
    # The steps import this file by its name, also where it runs as a program.
    sys.modules.setdefault("gpu_day", sys.modules[__name__])
    result = getattr(importlib.import_module(module), function)(day, *arguments)
    day.result(step.name).parent.mkdir(parents=True, exist_ok=True)
    result.save(day.result(step.name))
    print("\n".join(table_of(result)), flush=True)


# -- state and report ------------------------------------------------------------------------------------------------
def write(path: Path, text: str) -> None:
    """Write a file whole, or not at all."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def load_records(day: Day, *, endless: set[str]) -> dict[str, Record]:
    """What became of the steps in the calls before; those of the names ``endless`` are always tried again."""
    path = day.work / "state.json"
    values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    records = {name: Record(**value) for name, value in values.items()}
    for name, record in records.items():
        if name not in endless and record.state == "cut off" and record.tries >= MOST_TRIES and record.error == "":
            # This process was ended with the step, twice.
            record.state, record.error = "failed", "the whole call was ended in this step, twice"
    return records


def save_records(day: Day, records: dict[str, Record]) -> None:
    """Write them down."""
    write(day.work / "state.json", json.dumps({name: asdict(record) for name, record in records.items()}, indent=1))


def table_of(result: Result) -> list[str]:
    """A result in Markdown."""
    rows = [result.columns, tuple("---" for _ in result.columns), *result.rows] if result.columns else []
    return ["| " + " | ".join(row) + " |" for row in rows] + ["", *(f"- {remark}" for remark in result.remarks)]


def write_report(day: Day, *, steps: Sequence[Step], records: dict[str, Record]) -> None:
    """``report.md``, ``results.json`` and ``log.txt`` in the folder that is carried back."""
    lines = ["# GPU day", "", "| phase | step | state | seconds |", "|---|---|---|---|"]
    lines += [
        f"| {step.phase} | {step.name} | {records[step.name].state} | {records[step.name].seconds:.0f} |"
        for step in steps
    ]
    results: dict[str, object] = {}
    logs = []
    for step in steps:
        record, path = records[step.name], day.result(step.name)
        lines += ["", f"## {step.name}", ""]
        if path.is_file():
            result = Result.load(path)
            results[step.name] = asdict(result)
            lines += table_of(result)
        if record.state == "failed":
            lines += ["", "```", record.error.strip(), "```"]
        log = day.work / "logs" / f"{step.name}.txt"
        if log.is_file():
            logs.append(f"==== {step.name}\n{log.read_text(encoding='utf-8', errors='replace')}")
    write(day.out / "report.md", "\n".join(lines) + "\n")
    steps_json = {name: asdict(record) for name, record in records.items()}
    write(day.out / "results.json", json.dumps({"steps": steps_json, "results": results}, indent=1))
    write(day.out / "log.txt", "\n".join(logs)[-LOG_BYTES:])
    carried = [path for path in day.out.rglob("*") if path.is_file()]
    if len(carried) > FILES or any(path.stat().st_size > FILE_BYTES for path in carried):
        print(f"{day.out} has more than {FILES} files, or one above {FILE_BYTES} bytes", flush=True)


# -- what is carried -------------------------------------------------------------------------------------------------
def unpack_wheels(day: Day) -> None:
    """The wheels' files in ``work/site``: wheels are archives of what ``import`` finds."""
    site = day.work / "site"
    marker = day.work / "wheels.txt"
    wheels = sorted((day.pack / "wheels").glob("*.whl"))
    names = "\n".join(wheel.name for wheel in wheels)
    if not marker.is_file() or marker.read_text(encoding="utf-8") != names:
        for wheel in wheels:
            python, abi, _ = wheel.stem.split("-")[-3:]
            this = f"cp{sys.version_info.major}{sys.version_info.minor}"
            if python.startswith("cp") and abi != "abi3" and python != this:
                print(f"{wheel.name} is for another Python than {this}: left out", flush=True)
                continue
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)
        write(marker, names)
        print(f"{len(wheels)} wheels unpacked", flush=True)


def split_file(path: Path, folder: Path, *, bytes_each: int = FILE_BYTES - 2**16) -> list[Path]:
    """A file as parts ``NAME.000``, ``NAME.001`` and so on in ``folder``; older parts are removed."""
    for old in folder.glob(f"{path.name}.[0-9][0-9][0-9]"):
        old.unlink()
    parts: list[Path] = []
    with path.open("rb") as file:
        while block := file.read(bytes_each):
            parts.append(folder / f"{path.name}.{len(parts):03}")
            parts[-1].write_bytes(block)
    return parts


def join_parts(folder: Path, generator: Path) -> None:
    """The generator's folder of the parts in ``folder``."""
    parts = sorted(folder.glob("generator.zip.[0-9][0-9][0-9]"))
    if not parts:
        sys.exit(f"{folder} has no generator.zip.000; give the folder that was carried back")
    generator.mkdir(parents=True, exist_ok=True)
    whole = generator / "generator.zip"
    with whole.open("wb") as file:
        for part in parts:
            file.write(part.read_bytes())
    with zipfile.ZipFile(whole) as archive:
        archive.extractall(generator)
    whole.unlink()


if __name__ == "__main__":
    main()
