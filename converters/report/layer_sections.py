"""The sections of a report that look at single layers, codebooks and embeddings."""

from __future__ import annotations

from collections.abc import Sequence

from edgeid.converters.report.codebook_use import CodebookUse
from edgeid.converters.report.layer_sensitivity import LayerSensitivity
from edgeid.converters.report.markup import (
    Markup,
    bar,
    element,
    in_bytes,
    in_millions,
    joined,
    markup,
    profile,
    rounded,
    table,
)
from edgeid.converters.report.plots import (
    plot_bits,
    plot_cosines,
    plot_pairs,
    plot_profiles,
    plot_sensitivity,
    plot_steps,
)
from edgeid.converters.report.sections import captioned
from edgeid.converters.report.steps import Measured


def layers_section(measured: Measured) -> Markup:
    """Sensitivity plots, and a table of each entry's layers."""
    figures, tables = [], []
    for number, entry in enumerate(measured.entries):
        layers = measured.sensitivity.get(entry, ())
        if any(layer.loss is not None for layer in layers):
            plot = Markup(plot_sensitivity(layers, f"layers{number}"))
            figures.append(captioned(plot, entry, "layer by layer"))
        summary = element("summary", f"{entry}: {len(measured.steps[-1].costs[entry])} layers")
        tables.append(element("details", summary, _layer_table(measured, entry)))
    note = "No layer could be compared." if measured.sensitivity and not figures else ""
    if figures:
        note = (
            "Each layer of the original alone takes the weights that the last step stores for "
            "it: how far do the embeddings move? A cross marks a layer that could not be compared."
        )
    head = element("h2", "Layers" if not figures else "Sensitivity of the layers")
    parts: list[object] = [head]
    if note:
        parts.append(element("p", note, kind="note"))
    if figures:
        parts.append(element("div", *figures, kind="plots"))
    return element("section", joined([*parts, *tables]))


def _layer_table(measured: Measured, entry: str) -> Markup:
    """The layers of the last step; sensitivities beside those of the same name."""
    sensitivity = {layer.name: layer for layer in measured.sensitivity.get(entry, ())}
    worst = max((layer.loss or 0.0 for layer in sensitivity.values()), default=0.0) or 1.0
    costs = measured.steps[-1].costs[entry]
    most = max((cost.multiply_adds for cost in costs), default=0) or 1
    head = ["layer", "weight", "stored as", "bits a weight", "multiply-adds", ""]
    head += ["weight error", "1 - cosine", ""] if sensitivity else []
    rows = []
    for number, cost in enumerate(costs, 1):
        # a shape is no number and stands to the left
        shape = markup(" \u00d7 ".join(map(str, cost.shape)))
        row: list[object] = [f"{number}  {cost.name}", shape, cost.encoding]
        row += [rounded(cost.bits, ".2f"), in_millions(cost.multiply_adds)]
        row.append(bar(cost.multiply_adds / most))
        if sensitivity:
            row += _sensitivity_cells(sensitivity.get(cost.name), worst)
        rows.append(row)
    return table(head, rows)


def _sensitivity_cells(layer: LayerSensitivity | None, worst: float) -> list[object]:
    if layer is None or layer.loss is None or layer.error is None:
        return ["\u2013", "\u2013", element("small", layer.note if layer else "a new layer")]
    return [f"{100 * layer.error:.1f} %", f"{layer.loss:.5f}", bar(layer.loss / worst, 2)]


def codebooks_section(measured: Measured) -> Markup:
    """How often codewords are used; nothing where the last step has none."""
    uses = measured.codebooks
    if not uses:
        return Markup("")
    coded = any(use.kind == "codebook" for use in uses)
    what, sets = ("codewords", "sets of codebooks") if coded else ("values", "dictionaries")
    total, dead = sum(use.codewords for use in uses), sum(use.dead for use in uses)
    stored = sum(use.bits * use.indices for use in uses)
    carried = sum(use.entropy * use.indices for use in uses) / stored
    shared = sum(len(use.tensors) > 1 for use in uses)
    line = (
        f"{len(uses):,} {sets}, {shared:,} of them shared by several weights. {dead:,} of "
        f"{total:,} {what} are dead. Indices take {in_bytes(stored / 8)} and carry "
        f"{100 * carried:.1f} % of it; the rest is what an entropy coder could save."
    )
    note = (
        "Bits carried: the entropy of the stored indices, of the bits that each takes. Dead: "
        f"{what} that no weight names. Use ranks {what} from the most to the least frequent; "
        f"the orange line is even use. Bits a weight count indices, {what} and scales."
    )
    plots = [
        captioned(Markup(plot_bits(uses, "bits")), "Bits", "of an index, carried of stored"),
        captioned(Markup(plot_profiles(uses, "profiles")), "Use", "each set thin, the mean bold"),
    ]
    parts = [
        element("h2", "Use of the codebooks" if coded else "Use of the dictionaries"),
        element("p", line),
        element("div", *plots, kind="plots two"),
        element("details", element("summary", f"{len(uses)} {sets}"), _use_table(uses, coded)),
        element("p", note, kind="note"),
    ]
    return element("section", joined(parts))


def _use_table(uses: Sequence[CodebookUse], coded: bool) -> Markup:
    rows = []
    for use in uses:
        row: list[object] = [joined_names(use.tensors), str(use.k)]
        row += [str(use.r), str(use.spaces)] if coded else []
        row += [f"{use.entropy:.2f} of {use.bits}", bar(use.entropy / use.bits)]
        share = f" ({100 * use.dead / use.codewords:.1f} %)" if use.dead else ""
        row += [f"{use.dead:,}{share}", profile(use.profile), f"{use.bits_per_weight:.2f}"]
        rows.append(row)
    form = ["K", "r", "sub-spaces"] if coded else ["values"]
    head = ["weights", *form, "bits carried", "", "dead", "use", "bits a weight"]
    return table(head, rows)


def joined_names(names: Sequence[str]) -> Markup:
    """The names of weights that share, one below the other."""
    lines = [markup(name) for name in names[:4]]
    if len(names) > 4:
        lines.append(element("small", f"and {len(names) - 4} more"))
    return Markup("<br>".join(lines))


def similarity_section(measured: Measured) -> Markup:
    """The embeddings of the last step beside the original ones."""
    figures = []
    for number, entry in enumerate(measured.entries):
        last = measured.steps[-1].similarity.get(entry)
        if last is None:
            continue
        if last.cosines is not None:
            what = f"each sample, mean {rounded(last.mean)}"
            plot = Markup(plot_cosines(last, f"cosines{number}"))
            figures.append(captioned(plot, entry, what))
        if len(last.pairs):
            what = f"pairs of samples, correlation {rounded(last.correlation)}"
            figures.append(captioned(Markup(plot_pairs(last, f"pairs{number}")), entry, what))
        steps = [(s.name, s.similarity[entry]) for s in measured.steps[1:]]
        steps = [(name, one) for name, one in steps if one.cosines is not None]
        if len(steps) > 1:
            plot = Markup(plot_steps(steps, f"ranges{number}"))
            figures.append(captioned(plot, entry, "step by step"))
    if not figures:
        return Markup("")
    note = (
        "Verification compares pairs: where their cosines stay on the line, decisions stay the "
        "same even if single embeddings have moved. Of the many pairs that are alike in the "
        "original only some are drawn. Samples that the passes were calibrated with flatter them."
    )
    head = element("h2", "Embeddings, original against now")
    plots = element("div", *figures, kind="plots")
    return element("section", joined([head, plots, element("p", note, kind="note")]))
