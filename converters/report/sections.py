"""The sections of a report: what was measured, as plots and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgeid.converters.report.markup import (
    Markup,
    bar,
    element,
    in_bytes,
    in_millions,
    in_percent,
    in_times,
    joined,
    rounded,
    series,
    stacked,
    table,
)
from edgeid.converters.report.steps import Measured, MeasuredStep, Rate
from edgeid.converters.report.trade_off import Point, plot_trade_off

Figure = float | int | str


def tiles(measured: Measured) -> Markup:
    """The outcome in a few large numbers: the last step against the originals."""
    first, last = measured.steps[0], measured.steps[-1]
    size = f"{in_bytes(first.size.file)} \u2192 {in_bytes(last.size.file)}"
    found = [_tile(in_times(first.size.file, last.size.file), f"smaller: {size}")]
    for entry in measured.entries:
        if entry in last.rates:
            rate = last.rates[entry]
            was = f", was {in_percent(first.rates[entry].value)}" if entry in first.rates else ""
            found.append(_tile(in_percent(rate.value), f"{entry}: {rate.name}{was}"))
        if entry in last.similarity and last.similarity[entry].mean is not None:
            cosine = rounded(last.similarity[entry].mean, ".3f")
            found.append(_tile(cosine, f"{entry}: mean cosine to the original"))
        now, was = last.latency[entry].minimum, f"was {first.latency[entry].minimum:.3g} ms"
        found.append(_tile(f"{now:.3g} ms", f"{entry}: latency, {was}"))
    return element("div", *found, kind="tiles")


def _tile(number: str, what: str) -> Markup:
    return element("div", element("b", number), element("span", what), kind="tile")


def steps_section(measured: Measured) -> Markup:
    """Size and time of every step, then the figures of each entry."""
    parts: list[object] = [element("h2", "Every step"), _sizes(measured)]
    for entry in measured.entries:
        parts += [element("h3", entry), _entry_table(measured, entry)]
    rounds = ", ".join(f"{e} {measured.steps[0].latency[e].rounds}" for e in measured.entries)
    note = (
        f"Multiply-adds of convolutions and fully connected layers for one input. Latency of one "
        f"inference with one input: {measured.engine}, {measured.threads} thread(s), "
        f"{measured.machine}; the steps took turns (rounds: {rounds}). "
    )
    if measured.samples:
        counts = ", ".join(f"{name} {count}" for name, count in measured.samples.items())
        note += f"Cosines are to the embeddings of the first step (samples: {counts})."
    return element("section", joined([*parts, element("p", note, kind="note")]))


def _sizes(measured: Measured) -> Markup:
    first = measured.steps[0].size
    whole = max(step.size.file for step in measured.steps)
    sharing = any(step.size.bytes_shared for step in measured.steps)
    rows = []
    for step in measured.steps:
        size = step.size
        own = [*(size.bytes[entry] for entry in measured.entries), size.bytes_shared]
        parts = [*own, max(0, size.file - sum(own))]
        weights = sum(size.weights.values()) + size.weights_shared
        row: list[object] = [step.name, in_bytes(size.file), in_times(first.file, size.file)]
        row += [stacked([part / whole for part in parts]), in_millions(weights)]
        row += [in_bytes(size.bytes_shared)] if sharing else []
        row.append(rounded(8 * size.file / weights if weights else None, ".2f"))
        row.append(f"{step.report.seconds:,.0f} s" if step.report else "\u2013")
        rows.append(row)
    head = ["step", "file", "smaller", "made of", "weights", "shared", "bits a weight", "took"]
    if not sharing:
        head.remove("shared")
    names = [*measured.entries, "shared", "layers and header"]
    keys = [
        element("span", Markup(f'<i class="b{series(number)}"></i>'), name, kind="key")
        for number, name in enumerate(names, 1)
        if name != "shared" or sharing
    ]
    return joined([table(head, rows), element("p", *keys, kind="note")])


def _entry_table(measured: Measured, entry: str) -> Markup:
    judged = any(entry in step.rates for step in measured.steps)
    alike = any(entry in step.similarity for step in measured.steps)
    name = next((s.rates[entry].name for s in measured.steps if entry in s.rates), "")
    head = ["step", *([name, "95 % interval", "trials"] if judged else [])]
    head += ["multiply-adds", "latency, least", "median"]
    head += ["mean cosine", "pair correlation"] if alike else []
    rows = []
    for step in measured.steps:
        row: list[object] = [step.name]
        row += _rate_cells(step.rates.get(entry)) if judged else []
        times = step.latency[entry]
        row += [in_millions(step.multiply_adds(entry))]
        row += [f"{times.minimum:.3g} ms", f"{times.median:.3g} ms"]
        if alike:
            one = step.similarity.get(entry)
            row += [rounded(one.mean if one else None), rounded(one.correlation if one else None)]
        rows.append(row)
    return table(head, rows)


def _rate_cells(rate: Rate | None) -> list[object]:
    if rate is None:
        return ["\u2013"] * 3
    low, high = 100 * rate.low, 100 * rate.high
    return [in_percent(rate.value), f"{low:.2f} to {high:.2f} %", f"{rate.trials:,}"]


def trade_off_section(measured: Measured) -> Markup:
    """Accuracy, or likeness without labels, against size and latency, for each entry."""
    figures: list[Markup] = []
    for number, entry in enumerate(measured.entries):
        judged = [step for step in measured.steps if entry in step.rates]
        alike = [s for s in measured.steps if _mean(s, entry) is not None]
        steps = judged or alike
        if not steps:
            continue
        lower = bool(judged) and judged[0].rates[entry].lower_is_better
        name = f"{judged[0].rates[entry].name}, %" if judged else "mean cosine to the original"
        sizes = [_point(step, entry, step.size.file / 1e6) for step in steps]
        times = [_point(step, entry, step.latency[entry].minimum) for step in steps]
        for points, x, key in ((sizes, "file, MB", "size"), (times, "least latency, ms", "time")):
            plot = plot_trade_off(points, x, name, lower=lower, key=f"{key}{number}")
            what = "size" if key == "size" else "latency"
            figures.append(captioned(Markup(plot), entry, f"against {what}"))
    if not figures:
        return Markup("")
    note = "Full dots are on the Pareto front: no other step is as good in both. "
    note += "The dotted line follows the steps"
    note += ", vertical lines are 95 % intervals." if any(s.rates for s in measured.steps) else "."
    plots = element("div", *figures, kind="plots two")
    head = element("h2", "Trade-off")
    return element("section", joined([head, plots, element("p", note, kind="note")]))


def _mean(step: MeasuredStep, entry: str) -> float | None:
    return step.similarity[entry].mean if entry in step.similarity else None


def _point(step: MeasuredStep, entry: str, x: float) -> Point:
    if entry in step.rates:
        rate = step.rates[entry]
        return Point(step.name, x, 100 * rate.value, 100 * rate.low, 100 * rate.high)
    mean = _mean(step, entry)
    assert mean is not None
    return Point(step.name, x, mean, mean, mean)


def captioned(plot: Markup, subject: str, what: str) -> Markup:
    """A figure with its caption above."""
    return element("figure", element("figcaption", element("b", subject), f" {what}"), plot)


def passes_section(measured: Measured) -> Markup:
    """What the passes themselves report, with their figures of single layers."""
    parts: list[object] = []
    for step in measured.steps:
        if step.report is None:
            continue
        parts.append(element("h3", step.name))
        lines = [element("li", line) for line in step.report.text()]
        parts.append(element("ul", *lines, kind="lines"))
        found = _by_layer(step.report.figures)
        if found:
            summary = element("summary", "figures of single layers")
            parts.append(element("details", summary, found))
        given = (f"{key} = {value}" for key, value in step.report.options.items())
        options = element("code", ", ".join(given))
        parts.append(element("details", element("summary", "options"), element("p", options)))
    if not parts:
        return Markup("")
    return element("section", element("h2", "What the passes report"), joined(parts))


def _by_layer(figures: Mapping[str, Figure]) -> Markup | None:
    """Figures named "what/layer" as a table; None where there are none for two layers.

    Those of which most layers have one make the rows; others, such as of entries, are left out.
    """
    found: dict[str, dict[str, Figure]] = {}
    for key, value in figures.items():
        what, slash, layer = key.partition("/")
        if slash:
            found.setdefault(what, {})[layer] = value
    layers = max(found.values(), key=len, default={})
    if len(layers) < 2:
        return None
    columns = {what: own for what, own in found.items() if own.keys() & layers.keys()}
    most = max((_number(value) for value in columns.get("sensitivity", {}).values()), default=0.0)
    head = ["layer", *columns]
    if most > 0:
        head.insert(head.index("sensitivity") + 1, "")
    rows = []
    for name in layers:
        row: list[object] = [name]
        for what, own in columns.items():
            value = own.get(name, "\u2013")
            row.append(f"{value:.4g}" if isinstance(value, float) else str(value))
            if what == "sensitivity" and most > 0:
                row.append(bar(_number(value) / most, 2))
        rows.append(row)
    return table(head, rows)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def text_lines(lines: Sequence[str]) -> Markup:
    """Free lines, each a paragraph."""
    return joined([element("p", line) for line in lines])
