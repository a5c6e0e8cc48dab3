#!/usr/bin/env python3
"""Draws the loss curves of runs from their metrics.jsonl, as an SVG file; needs only Python.

    python3 dev/plot.py curves.svg runs/a [runs/b ...]

Lines show the training loss, averaged over the last 20 steps, and dots the validation loss, both in nats per token.
"""
import json
import os
import sys

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 380, 60, 20, 20, 50
COLOURS = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf"]


def read(run):
    steps, validations = [], []
    with open(os.path.join(run, "metrics.jsonl")) as lines:
        for line in lines:
            entry = json.loads(line)
            if entry.get("loss") is not None:
                steps.append((entry["step"], entry["loss"]))
            if entry.get("validation_loss") is not None:
                validations.append((entry["step"], entry["validation_loss"]))
    smooth, sums = [], []
    for step, loss in steps:
        sums = (sums + [loss])[-20:]
        smooth.append((step, sum(sums) / len(sums)))
    return smooth, validations


def ticks(low, high, count=6):
    raw = max(high - low, 1e-9) / count
    unit = 10 ** len(str(int(raw))) / 10 if raw >= 1 else 0.1
    step = next(unit * f for f in (1, 2, 5, 10, 20, 50, 100) if unit * f >= raw)
    first = -(-low // step) * step
    return [first + i * step for i in range(int((high - first) / step) + 1)]


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    target, runs = sys.argv[1], sys.argv[2:]
    curves = [(run, *read(run)) for run in runs]
    points = [p for _, smooth, dots in curves for p in smooth + dots]
    if not points:
        sys.exit("error: there are no steps in metrics.jsonl of " + ", ".join(runs))
    right, low, high = max(p[0] for p in points), min(p[1] for p in points), max(p[1] for p in points)

    def place(step, loss):
        x = LEFT + (WIDTH - LEFT - RIGHT) * step / right
        y = TOP + (HEIGHT - TOP - BOTTOM) * (high - loss) / max(high - low, 1e-9)
        return f"{x:.1f},{y:.1f}"

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" '
           f'font-size="12"><rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>']
    for loss in ticks(low, high):
        x, y = place(0, loss).split(",")
        out.append(f'<path d="M{x} {y}H{WIDTH - RIGHT}" stroke="#ddd"/>'
                   f'<text x="{LEFT - 8}" y="{float(y) + 4:.1f}" text-anchor="end">{loss:g}</text>')
    for step in ticks(0, right):
        x, _ = place(step, low).split(",")
        out.append(f'<path d="M{x} {TOP}V{HEIGHT - BOTTOM}" stroke="#ddd"/>'
                   f'<text x="{x}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{step:g}</text>')
    out.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 12}" text-anchor="middle">step</text>'
               f'<text transform="translate(16 {HEIGHT / 2 - 20}) rotate(-90)" text-anchor="middle">loss, nats per token</text>')
    for i, (run, smooth, dots) in enumerate(curves):
        colour = COLOURS[i % len(COLOURS)]
        out.append(f'<polyline points="{" ".join(place(*p) for p in smooth)}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        out += ['<circle cx="{}" cy="{}" r="3.5" fill="{}"/>'.format(*place(*p).split(","), colour) for p in dots]
        out.append(f'<text x="{WIDTH - RIGHT - 8}" y="{TOP + 18 + 18 * i}" text-anchor="end" fill="{colour}">{os.path.basename(run.rstrip("/"))}</text>')
    with open(target, "w") as file:
        file.write("\n".join(out) + "\n</svg>\n")


if __name__ == "__main__":
    main()
