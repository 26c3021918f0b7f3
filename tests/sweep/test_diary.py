"""What a worker says is stored as it goes on."""

import subprocess
import sys
from pathlib import Path

from ressa.store import LogName, get_log, open_store

PROGRAM = """
import sys
from ressa.sweep import diary

opened = []
real = diary.open_store
diary.open_store = lambda place: opened.append(place) or real(place)
kept = diary.Diary(0)
for trial in ("t000", "t001"):
    kept.begin(diary.Subject(store=sys.argv[1], sweep="s", trial=trial, attempt=0))
    for words in ("first", "second"):
        print(words, flush=True)
        kept.store()
    kept.note(f"opened {len(opened)} times")
kept.store()
"""


def test_a_store_is_opened_once_an_attempt(tmp_path: Path) -> None:
    sweep = open_store(tmp_path, create=True).create_sweep("s", "ressa: 1")
    subprocess.run([sys.executable, "-c", PROGRAM, str(tmp_path)], check=True, timeout=60)
    for count, trial in enumerate(("t000", "t001"), 1):
        said = get_log(sweep, trial, LogName(0, 0)).decode()
        assert said.startswith("first\nsecond\n")
        assert said.endswith(f"opened {count} times\n")
