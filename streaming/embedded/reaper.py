"""The process that cleans up when limner itself can't: it outlives a SIGKILL of its parent.

Run as a script by `processes`, with a pipe as stdin. Lines: `group N` (a child, leader of its own
process group), `folder PATH`, and `forget N` / `forget PATH` once the parent has ended it itself. The
kernel closes the pipe when the parent dies, however it dies; whatever is left is then killed and removed.
A death signal (prctl) would be sent when the creating *thread* ends, and could not remove folders.
"""

import contextlib
import os
import shutil
import signal
import sys


def main() -> None:
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # it ends when the parent does, not before
        signal.signal(signum, signal.SIG_IGN)
    groups: set[str] = set()
    folders: set[str] = set()
    for line in sys.stdin:
        word, _, name = line.rstrip("\n").partition(" ")
        if word == "group":
            groups.add(name)
        elif word == "folder":
            folders.add(name)
        else:
            groups.discard(name)
            folders.discard(name)
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(group), signal.SIGKILL)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
