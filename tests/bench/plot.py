#!/usr/bin/env python3
"""Draws the table of `memory.sh`, given on stdin, as docs/memory.svg: time over the bytes moved, and peak memory over the
image's size.

    plot.py FILE.svg < TABLE
"""
import sys

rows = [[cell.strip() for cell in line.strip("| \n").split("|")] for line in sys.stdin if line.startswith("|")][2:]
names = [row[0] for row in rows]
sizes = [int(name[:-1]) * {"M": 1, "G": 1024}[name[-1]] for name in names]
data, seconds, peaks = ([float(row[column]) for row in rows] for column in (1, 4, 8))
out = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 330" font-family="sans-serif" font-size="12">',
       '<rect width="760" height="330" fill="white"/>']


def text(x, y, words, anchor="middle"):
    out.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{words}</text>')


def panel(left, title, below, points, labels, top, step, unit):
    """One line in a frame of 300 by 240; `points` are 0 to 1 along x, and values up to `top`."""
    height = lambda value: 280 - 240 * value / top
    text(left + 150, 22, title)
    text(left + 150, 322, below)
    value = 0
    while value <= top:
        out.append(f'<path d="M{left} {height(value):.1f}h300" stroke="#ddd"/>')
        text(left - 6, height(value) + 4, f"{value:g}", "end")
        value += step
    text(left - 6, 34, unit, "end")
    places = [(left + 300 * x, height(y)) for x, y in points]
    out.append('<polyline fill="none" stroke="#2471a3" points="' + " ".join(f"{x:.1f},{y:.1f}" for x, y in places) + '"/>')
    for (x, y), label in zip(places, labels):
        out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="#2471a3"/>')
        if label:
            text(x, 300, label)


def round_up(value, step):
    return step * -(-value // step)


most = max(data)
step = 5 if max(seconds) > 10 else 1
panel(60, "time of an install", "MB of data moved", [(d / most, s) for d, s in zip(data, seconds)],
      [f"{d:.0f}" if d / most > 0.1 else "" for d in data], round_up(max(seconds), step), step, "s")
places = [index / (len(sizes) - 1) for index in range(len(sizes))]
panel(430, "peak memory", "size of the image", list(zip(places, peaks)), names, 20, 4, "MiB")
limit = 280 - 240 * 15.26 / 20
out.append(f'<path d="M430 {limit:.1f}h300" stroke="#c0392b" stroke-dasharray="5 4"/>')
text(730, limit - 5, "16 MB", "end")
with open(sys.argv[1], "w") as file:
    file.write("\n".join(out) + "\n</svg>\n")
