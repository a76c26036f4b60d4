"""What the codebook pass tells: codings, sensitivity, sharing, likeness to the originals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from edgeid.converters.codebook.calibration import Calibrated
from edgeid.converters.codebook.coded_weights import CodedPair
from edgeid.converters.codebook.pairing import Pairing
from edgeid.converters.codebook.sensitivity import Sensitivity
from edgeid.converters.codebook.sharing import Sharing
from edgeid.converters.recipe import Figures


def codebook_report(
    pairing: Pairing,
    result: Calibrated,
    cosines: Mapping[str, Mapping[str, float]],
    sensitivity: Sensitivity | None,
    sharing: Sharing | None,
) -> tuple[tuple[str, ...], Figures]:
    """Lines for people and figures for the report.

    Args:
        pairing: what was coded.
        result: of the calibration.
        cosines: mean cosine to the original embedding by entry, after clustering
            ("clustered") and after calibration ("calibrated").
        sensitivity: where K and r were chosen under a budget.
        sharing: where it was compared with separate codebooks.
    """
    pairs = result.coded.pairs
    indices, codebooks, saved = byte_counts(pairs)
    shared = sum(len(pair.shapes) > 1 for pair in pairs)
    forms = Counter((p.codewords.shape[1], p.codewords.shape[2]) for p in pairs)
    lines = [
        f"{len(pairs)} sets of codebooks, {shared} of them shared by two layers: "
        + ", ".join(f"{n} of K={k} r={r}" for (k, r), n in sorted(forms.items())),
        f"indices {indices:,} bytes, codebooks {codebooks:,} bytes; sharing saves {saved:,} bytes "
        f"({saved / (indices + codebooks + saved):.1%}) against codebooks of each layer's own",
        f"calibration: loss {result.before:.4f} -> {result.after:.4f}",
    ]
    lines += [
        f"{entry}: cosine to the original {cosines['clustered'][entry]:.4f} after clustering, "
        f"{cosines['calibrated'][entry]:.4f} after calibration"
        for entry in cosines["calibrated"]
    ]
    lines += [f"not coded: {name}, {why}" for name, why in pairing.kept.items()]
    figures: Figures = {
        "index_bytes": indices,
        "codebook_bytes": codebooks,
        "bytes_saved_by_sharing": saved,
        "shared_pairs": shared,
        "loss_clustered": result.before,
        "loss_calibrated": result.after,
    }
    for stage, by_entry in cosines.items():
        figures |= {f"cosine_{stage}/{entry}": value for entry, value in by_entry.items()}
    for pair, coded in zip(pairing.pairs, pairs, strict=True):
        figures[f"K/{pair.name}"] = coded.codewords.shape[1]
        figures[f"r/{pair.name}"] = coded.codewords.shape[2]
        figures[f"used/{pair.name}"] = used_share(coded)
    if sensitivity is not None:
        for pair, error in zip(pairing.pairs, sensitivity.measured, strict=True):
            figures[f"sensitivity/{pair.name}"] = error
    if sharing is not None:
        lines.append(sharing.line())
        figures |= sharing.figures()
    return tuple(lines), figures


def byte_counts(pairs: Sequence[CodedPair]) -> tuple[int, int, int]:
    """(indices, codebooks with their scales, what separate codebooks would take more)."""
    indices = codebooks = saved = 0
    for pair in pairs:
        for number, stored in enumerate(pair.stored().values()):
            assert stored.scale is not None
            indices += stored.indices.nbytes
            codebooks += stored.scale.nbytes + (0 if number else stored.codewords.nbytes)
        _, k, r = pair.codewords.shape
        spaces = [len(gain) for gain in pair.gains.values()]
        saved += (sum(spaces) - max(spaces)) * k * r
    return indices, codebooks, saved


def used_share(pair: CodedPair) -> float:
    """Share of the codewords that some sub-vector names."""
    spaces, k, _ = pair.codewords.shape
    named = {
        (space, index)
        for rows in pair.indices.values()
        for space, row in enumerate(rows)
        for index in row.unique().tolist()
    }
    return len(named) / (spaces * k)
