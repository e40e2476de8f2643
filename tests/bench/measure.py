#!/usr/bin/env python3
"""Runs one command that fills a slot, and says what it cost, as one line: seconds, CPU seconds, the largest process's
peak in KiB, and bytes written to the slot.

    measure.py SLOT-DEVICE [--daemon PID] COMMAND...

The clock stops when the command has ended and the slot is flushed, so that nobody gains by leaving bytes in memory.
CPU and memory are those of the command and of all that it started and waited for, and of the daemon that it asked.
"""
import os
import resource
import subprocess
import sys
import tempfile
import time

device, *command = sys.argv[1:]
daemon = None
if command[0] == "--daemon":
    daemon, command = int(command[1]), command[2:]
statistics = f"/sys/block/{os.path.basename(device)}/stat"


def sectors_written():
    with open(statistics) as file:
        return int(file.read().split()[6])


def of_daemon():
    """CPU seconds with its ended children, and peak KiB."""
    if daemon is None:
        return 0.0, 0
    with open(f"/proc/{daemon}/stat") as file:
        ticks = sum(int(field) for field in file.read().rsplit(")", 1)[1].split()[11:15])
    with open(f"/proc/{daemon}/status") as file:
        peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM:"))
    return ticks / os.sysconf("SC_CLK_TCK"), peak


sectors, (cpu, _), start = sectors_written(), of_daemon(), time.monotonic()
with tempfile.NamedTemporaryFile("r") as told:
    # GNU time, for a child of this interpreter would begin with its size as a peak.
    timed = ["/usr/bin/time", "-q", "-f", "%M", "-o", told.name] + command
    done = subprocess.run(timed, stdout=subprocess.DEVNULL)
    largest = int(told.read() or 0)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
subprocess.run(["blockdev", "--flushbufs", device], check=True)
seconds = time.monotonic() - start
after, peak = of_daemon()
if done.returncode:
    sys.exit(f"{' '.join(command)}: ended with {done.returncode}")
cpu = used.ru_utime + used.ru_stime + after - cpu
print(f"{seconds:.3f} {cpu:.3f} {max(largest, peak)} {(sectors_written() - sectors) * 512}")
