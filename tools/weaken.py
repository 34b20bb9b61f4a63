#!/usr/bin/env python3
"""Shows that the loom models of polyloop-shm can fail: weakens its sources in turn and names the models that then fail.

Every ordering stronger than Relaxed is found in the sources and weakened, one at a time: Acquire and Release to
Relaxed, a SeqCst fence to an AcqRel one. A few wrong protocols follow, told by hand below. Works on a copy under
target/, prints one row for each mutant, and exits with 1 if any of them passes all models.

    tools/weaken.py [--only TEXT] [--models TEXT] [--preemptions 2]
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "target" / "weaken"
CRATE = Path("crates") / "polyloop-shm"
SOURCES = (
    "board.rs",
    "board/reader.rs",
    "board/writer.rs",
    "lease.rs",
    "ring.rs",
    "wake.rs",
    "queue/line.rs",
    "queue/naps.rs",
)
WEAKER = {
    "Ordering::Acquire": "Ordering::Relaxed",
    "Ordering::Release": "Ordering::Relaxed",
    "Ordering::AcqRel": "Ordering::Relaxed",
    "fence(Ordering::SeqCst)": "fence(Ordering::AcqRel)",
}
MODEL_TIMEOUT_S = 120


@dataclass(frozen=True)
class Mutant:
    name: str
    source: str
    start: int
    end: int
    text: str


# (source, what is wrong, the one place, what stands there instead)
WRONG_PROTOCOLS = [
    (
        "board.rs",
        "items carry no generation",
        "u64::from(self.generation) << 32 | u64::from(self.owner) << 16",
        "u64::from(self.owner) << 16",
    ),
    (
        "board/reader.rs",
        "a claim that does not compare",
        ".compare_exchange(unclaimed, mine, Ordering::Relaxed, Ordering::Relaxed).is_ok()",
        ".swap(mine, Ordering::Relaxed) != 0",
    ),
    (
        "board/writer.rs",
        "a retraction that does not compare",
        "item.compare_exchange(unclaimed, retracted, Ordering::Relaxed, Ordering::Relaxed)",
        "Ok::<u64, u64>(item.swap(retracted, Ordering::Relaxed))",
    ),
    (
        "board/writer.rs",
        "a claimed item counts as gone",
        "Phase::Unclaimed | Phase::Claimed => return None,",
        "Phase::Claimed => owners.push(Some(word.owner)),\n                Phase::Unclaimed => return None,",
    ),
    (
        "board/reader.rs",
        "whoever claimed the last item tells",
        "self.has_backlog() && self.has_emptied(claim)",
        "self.has_backlog() && claim.index + 1 == claim.count",
    ),
    (
        "queue/line.rs",
        "the tail is not moved on for one that died",
        "            Some(node) => {\n                self.follow(tail, node);\n                Ok(None)",
        "            Some(_) => {\n                Ok(None)",
    ),
    (
        "queue/line.rs",
        "links carry no position",
        "Self(position.0 << (SEAT_BITS + NODE_BITS) | Self::NOTHING)",
        "Self(u64::from(position.0 > 0) << (SEAT_BITS + NODE_BITS) | Self::NOTHING)",
    ),
    (
        "queue/naps.rs",
        "an actor rings only after it has acted",
        "self.word().fetch_add(1, Ordering::Relaxed);\n        self.must_ring()",
        "self.word().fetch_add(1, Ordering::Relaxed);\n        false",
    ),
    (
        "queue/naps.rs",
        "nobody asks who acts",
        "(1..used).map(Seat).filter(acts)",
        "(1..used.min(1)).map(Seat).filter(acts)",
    ),
    (
        "ring.rs",
        "a full ring is not looked at again",
        "fence(Ordering::SeqCst);\n        self.has_room(needed)",
        "fence(Ordering::SeqCst);\n        false",
    ),
    (
        "wake.rs",
        "a successor goes on in its predecessor's sleep",
        "let awake = (now | 1).wrapping_add(1);",
        "let awake = now;",
    ),
    (
        "wake.rs",
        "waking leaves the epoch as it is",
        "self.word().store(now.wrapping_add(1) & !1, Ordering::Relaxed);",
        "self.word().store(now, Ordering::Relaxed);",
    ),
    (
        "wake.rs",
        "a ringer rings once for all sleeps",
        "let must = now & 1 == 1 && now != self.rung;",
        "let must = now & 1 == 1 && self.rung == 0;",
    ),
]


def orderings(source: str, text: str) -> Iterator[Mutant]:
    code = text.split("#[cfg(all(test", 1)[0]
    owner, function = "", ""
    offset = 0
    for line in code.splitlines(keepends=True):
        if match := re.match(r"impl(?:<[^>]*>)? (\w+)", line):
            owner = match[1] + "::"
        if match := re.match(r"( *)(?:pub(?:\(\w+\))? )?fn (\w+)", line):
            function = (owner if match[1] else "") + match[2]
        for strong, weak in WEAKER.items():
            at = line.find(strong)
            if at >= 0 and not line.lstrip().startswith("//"):
                what = strong.removeprefix("Ordering::").replace("fence(Ordering::SeqCst)", "SeqCst fence")
                yield Mutant(f"`{function}`: {what}", source, offset + at, offset + at + len(strong), weak)
        offset += len(line)


def mutants(originals: dict[str, str]) -> Iterator[Mutant]:
    for source, text in originals.items():
        yield from orderings(source, text)
    for source, name, old, new in WRONG_PROTOCOLS:
        if originals[source].count(old) != 1:
            sys.exit(f"{source} has changed, and this script must follow: {name}: not found once:\n{old}")
        start = originals[source].index(old)
        yield Mutant(name, source, start, start + len(old), new)


def copy_crate() -> Path:
    """A workspace of this one crate, so that work going on in the others does not disturb."""
    tree = WORK / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    # Not copy2, whose old modification times would let cargo take the last run's mutant for this source.
    shutil.copytree(ROOT / CRATE, tree / CRATE, copy_function=shutil.copy)
    shutil.copy(ROOT / "Cargo.lock", tree)
    manifest = (ROOT / "Cargo.toml").read_text()
    manifest = re.sub(r"members = \[[^]]*\]", f'members = ["{CRATE}"]', manifest, count=1)
    (tree / "Cargo.toml").write_text(manifest)
    return tree


def build(tree: Path) -> Path:
    command = ["cargo", "test", "-p", "polyloop-shm", "--release", "--test", "loom", "--no-run"]
    command.append("--message-format=json")
    env = os.environ | {
        "RUSTFLAGS": "--cfg loom",
        "CARGO_TARGET_DIR": str(WORK / "build"),
        "CARGO_PROFILE_RELEASE_LTO": "off",
        "CARGO_PROFILE_RELEASE_DEBUG": "0",
    }
    built = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True, check=False)
    if built.returncode != 0:
        sys.exit(f"a mutant does not compile:\n{built.stderr}")
    messages = (json.loads(line) for line in built.stdout.splitlines())
    return next(Path(m["executable"]) for m in messages if m.get("executable"))


def failing(models: Path, preemptions: int, only: str = "") -> list[str]:
    """Each model in a process of its own, since a deadlock aborts it."""
    listed = subprocess.run([models, "--list"], capture_output=True, text=True, check=True).stdout
    env = os.environ | {"LOOM_MAX_PREEMPTIONS": str(preemptions), "RUST_BACKTRACE": "0"}
    failed = []
    for name in re.findall(r"^([\w:]+): test$", listed, re.MULTILINE):
        if only not in name:
            continue
        try:
            ran = subprocess.run(
                [models, "--exact", name], env=env, capture_output=True, check=False, timeout=MODEL_TIMEOUT_S
            )
            if ran.returncode != 0:
                failed.append(name)
        except subprocess.TimeoutExpired:
            failed.append(f"{name} (does not end)")
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only mutants whose row contains this text")
    parser.add_argument("--models", default="", help="only models whose name contains this text")
    parser.add_argument("--preemptions", type=int, default=2)
    options = parser.parse_args()

    tree = copy_crate()
    sources = tree / CRATE / "src"
    originals = {name: (sources / name).read_text() for name in SOURCES}
    if failed := failing(build(tree), options.preemptions, options.models):
        sys.exit(f"models fail on the sources as they are: {', '.join(failed)}")

    survivors = 0
    for mutant in mutants(originals):
        label = f"{mutant.source} {mutant.name}"
        if options.only not in label:
            continue
        text = originals[mutant.source]
        (sources / mutant.source).write_text(text[: mutant.start] + mutant.text + text[mutant.end :])
        failed = failing(build(tree), options.preemptions, options.models)
        (sources / mutant.source).write_text(text)
        survivors += not failed
        models = ", ".join(name.rpartition("::")[2] for name in failed)
        print(f"{label:75} -> {models or 'NO MODEL FAILS'}", flush=True)
    print(f"{survivors} not caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
