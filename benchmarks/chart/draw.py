"""Draws the chart: reads the bars as JSON from standard input, writes SVG. Runs in an environment of its own."""

import json
import sys
from statistics import median

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt

# Text stays text, and the same figures give the same file.
mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "campaign-jobs", "font.family": "sans-serif"})
OURS, THEIRS, LATE = "#2563eb", "#94a3b8", "#cbd5e1"


def main() -> None:
    given = json.load(sys.stdin)
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.2), layout="constrained")
    figure.patch.set_facecolor("white")

    rates = sorted(given["rates"].items(), key=lambda item: median(item[1]))
    names = [name for name, _ in rates]
    middles = [median(each) for _, each in rates]
    ranges = [
        [middle - min(each) for middle, (_, each) in zip(middles, rates, strict=True)],
        [max(each) - middle for middle, (_, each) in zip(middles, rates, strict=True)],
    ]
    colors = [OURS if name in given["ours"] else THEIRS for name in names]
    drawn = left.barh(names, middles, xerr=ranges, color=colors, error_kw={"elinewidth": 0.8})
    left.bar_label(drawn, [f"{middle:,.0f}" for middle in middles], padding=6, fontsize=8)
    left.set_title("jobs per second, higher is better")
    left.set_xlim(0, max(max(each) for _, each in rates) * 1.18)
    left.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")

    latencies = sorted(given["latencies"].items(), key=lambda item: -item[1][0])
    names = [name for name, _ in latencies]
    right.barh(names, [of[1] for _, of in latencies], color=LATE, label="p99")
    drawn = right.barh(
        names,
        [of[0] for _, of in latencies],
        color=[OURS if name in given["ours"] else THEIRS for name in names],
        label="p50",
    )
    labels = [f"{p50:,.1f} / {p99:,.1f}" for _, (p50, p99) in latencies]
    for bar, label, (_, (_, p99)) in zip(drawn, labels, latencies, strict=True):
        right.text(p99 * 1.1, bar.get_y() + bar.get_height() / 2, label, va="center", fontsize=8)
    right.set_xscale("log")
    right.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    right.set_xlim(right=max(of[1] for _, of in latencies) * 8)
    right.set_title("ms of a single job (p50 / p99), lower is better")

    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(sys.stdout.buffer, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
