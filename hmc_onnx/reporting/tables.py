"""Tables for people: what was done to each layer, and before against after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from calib.measure.latency_table import LatencyTable
from hmc_onnx.analysis.narrow_table import NarrowTable
from hmc_onnx.finetune.options import Epoch, best_epoch
from hmc_onnx.records.comparison import BUSY, OutputComparison, Verification, Visited
from hmc_onnx.records.plan import Plan
from hmc_onnx.records.provenance import Provenance
from passes.core.declined import Declined

__all__ = ["comparison", "epochs_table", "latency_table", "left_alone", "plan_tables", "provenance_table"]

LEGEND = (
    "loses least by: the kind of compression by which the network loses least where it is done to this layer alone. "
    "preference: by how much; -1 is all for pruning, +1 all for low rank (decomposition), and near 0 it may get both."
)
# Nats, and share of the divergence, by which that at another batch size must differ to be shown.
NOTABLE = (0.01, 1.0)


def _count(value: int) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.4g} {unit}"
    return str(value)


def comparison(v: Verification) -> Group:
    """Before and after, with the shares that are left; beside them the original in the precision that is served."""
    table = Table(title=f"Before and after, on {v.images} images ({escape(v.source)})", title_justify="left")
    other = [] if v.unchanged is None else [f"{v.unchanged.precision} alone"]
    for column in ("", "before", *other, "after", "after / before"):
        table.add_column(column, justify="left" if not column else "right")
    if v.a.top1 is not None and v.b.top1 is not None:
        change = f"{100 * (v.b.top1 - v.a.top1):+.2f} points"
        if v.shown_intervals is not None and v.shown_intervals.change is not None:
            change += f" ({100 * v.shown_intervals.change.low:+.2f} to {100 * v.shown_intervals.change.high:+.2f})"
        alone = [] if v.unchanged is None else ["" if v.unchanged.top1 is None else f"{v.unchanged.top1:.2%}"]
        table.add_row("top-1", f"{v.a.top1:.2%}", *alone, f"{v.b.top1:.2%}", change)
    for name in ("macs", "parameters", "bytes"):
        a, b = getattr(v.a, name), getattr(v.b, name)
        alone = [] if v.unchanged is None else [_count(v.unchanged.bytes if name == "bytes" else a)]
        table.add_row({"macs": "MACs"}.get(name, name), _count(a), *alone, _count(b), f"{b / max(a, 1):.3f}")
    for i, t in enumerate(v.timings):
        ratio = f"{t.ratio:.2f} ± {t.uncertainty:.2f}"
        alone = [] if v.unchanged is None else [f"{v.unchanged.timings[i].b:.2f} ms"]
        table.add_row(f"latency, batch {t.batch}", f"{t.a:.2f} ms", *alone, f"{t.b:.2f} ms", ratio)
    if v.timings and v.threads is not None:
        table.caption = f"latency with {v.threads} {'thread' if v.threads == 1 else 'threads'} of onnxruntime"
    parts: list[RenderableType] = [
        _rows(table, v),
        *([BUSY] if v.busy else []),
        *([v.caveat] if v.caveat else []),
        *([_outputs(v.outputs)] if _tell_more(v) else []),
        *([_curve(v.curve)] if v.curve else []),
    ]
    return Group(*parts)


def _rows(table: Table, v: Verification) -> Table:
    """What applies to the outputs that there are."""
    blank = [] if v.unchanged is None else [""]
    if v.agreement is not None:
        alone = [] if v.unchanged is None else [f"{v.unchanged.agreement or 0:.2%}"]
        of = None if v.shown_intervals is None else v.shown_intervals.agreement
        between = "" if of is None else f"{100 * of.low:.2f} to {100 * of.high:.2f} %"
        table.add_row("same class chosen", "", *alone, f"{v.agreement:.2%}", between)
    if v.cosine is not None:
        table.add_row("cosine of embeddings", "", *blank, f"{v.cosine:.4f}", "")
    if v.error is not None:
        table.add_row("error, in standard deviations", "", *blank, f"{v.error:.4f}", "")
    classes = all(o.agreement is not None for o in v.outputs if o.kl is not None)
    between = "" if v.shown_intervals is None else f"{v.shown_intervals.kl.low:.4f} to {v.shown_intervals.kl.high:.4f}"
    table.add_row("KL divergence" if classes else "divergence", "", *blank, f"{v.kl:.4f} nats", between)
    for other in v.batches:
        usual = v.kl if other.same is None else other.same
        if abs(other.kl - usual) > NOTABLE[0] + NOTABLE[1] * usual:
            table.add_row(f"divergence, {other.batch} images at once", "", *blank, f"{other.kl:.4f} nats", "")
    return table


def _tell_more(v: Verification) -> bool:
    """Whether there is more to say of the outputs than that class scores are compared by the KL divergence."""
    return len(v.outputs) > 1 or any(o.kind not in ("scores", "probabilities") for o in v.outputs)


def _outputs(outputs: Sequence[OutputComparison]) -> Table:
    table = Table(title="Outputs", title_justify="left")
    for column in ("output", "what it is", "compared by"):
        table.add_column(column, overflow="fold")
    table.add_column("difference", justify="right")
    for o in outputs:
        shares = [
            *([] if o.agreement is None else [f"{o.agreement:.2%} alike"]),
            *([] if o.cosine is None else [f"cosine {o.cosine:.4f}"]),
            *([] if o.error is None else [f"error {o.error:.4f} σ"]),
            *([] if o.kl is None else [f"{o.kl:.4f} nats"]),
        ]
        table.add_row(escape(o.name), o.what, o.judged_by, ", ".join(shares))
    return table


def _curve(visited: Sequence[Visited]) -> Table:
    table = Table(title="Networks visited", title_justify="left")
    for column in ("time, asked", "time", "loss", "loss, confirmed", ""):
        table.add_column(column, justify="right")
    for p in visited:
        shares = (f"{p.target:.3f}", f"{p.latency:.3f}", f"{p.drop:.2%}", f"{p.confirmed:.2%} ± {p.uncertainty:.2%}")
        table.add_row(*shares, "taken" if p.chosen else "")
    return table


def latency_table(table: LatencyTable) -> Table:
    """A latency table's entries, slowest first."""
    shown = Table(title=escape(str(table.machine)), title_justify="left")
    shown.add_column("batch × channels × size > links > what follows", overflow="fold")
    shown.add_column("µs", justify="right")
    shown.add_column("±", justify="right")
    for text, entry in sorted(table.entries.items(), key=lambda pair: -(pair[1].seconds or 0)):
        time = "cannot be timed" if entry.seconds is None else f"{1e6 * entry.seconds:.1f}"
        shown.add_row(escape(text), time, f"{1e6 * entry.uncertainty:.1f}")
    return shown


def plan_tables(plan: Plan) -> Group:
    """What is done to each channel group and layer, why, and whether another plan may be better."""
    parts: list[Table | NarrowTable | str] = []
    pruned = {name: g for name, g in plan.groups.items() if g.removed}
    if pruned:
        groups = NarrowTable(
            "Channel groups pruned",
            ("group (first layer that writes it)", "channels kept", "sensitivity"),
            right=("channels kept", "sensitivity"),
            dropped=("sensitivity",),
        )
        for name, g in pruned.items():
            kept = f"{g.size - len(g.removed)} of {g.size}" if len(g.removed) < g.size else "branch removed"
            groups.add_row(escape(name), kept, f"{g.sensitivity:.2e}")
        parts.append(groups)
    parts.append(_layers(plan))
    if any(layer.difference is not None for layer in plan.layers.values()):
        parts.append(LEGEND)
    if not plan.proven:
        parts.append(f"This is not proven to be the best plan: another may lose {plan.gap:.1%} less.")
    if plan.declined:
        parts.append(left_alone(plan.declined))
    return Group(*parts)


def left_alone(declined: Mapping[str, Declined]) -> NarrowTable:
    """What is left as it is, and why."""
    left = NarrowTable("Left as they are", ("what", "why"), sentences=("why",))
    for name, reason in declined.items():
        left.add_row(escape(name), escape(str(reason)))
    return left


def _layers(plan: Plan) -> NarrowTable:
    """What is done to each layer, and why."""
    time = [] if plan.latency is None else ["ms"]
    shown = NarrowTable(
        f"Layers (strategy {plan.strategy}, target {plan.target})",
        ("layer", "loses least by", "preference", "method", "rank", "MACs", *time, "why"),
        right=("preference", "rank", "MACs", "ms"),
        sentences=("why",),
        dropped=("preference", "loses least by", "why"),
    )
    for name, layer in plan.layers.items():
        shown.add_row(
            escape(name if not layer.also else f"{name} and {len(layer.also)} of the same weights"),
            layer.bears,
            "" if layer.difference is None else f"{layer.difference:+.2f}",
            layer.method + (", fp32" if layer.in_float else ""),
            str(layer.rank or ""),
            _count(layer.macs),
            *([f"{1e3 * (layer.seconds or 0):.3f}"] if time else []),
            escape(layer.reason),
        )
    return shown


def provenance_table(provenance: Provenance) -> Table:
    """What a compressed file says of how it was made."""
    title = "How this file was made"
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 1, 0, 0))
    table.add_column()
    table.add_column(overflow="fold")  # a digest fits into 80 columns
    for what, said in provenance.rows().items():
        table.add_row(what, escape(said))
    return table


def epochs_table(history: Sequence[Epoch]) -> Table:
    """What each epoch of a fine-tuning came to."""
    table = Table(title="Fine-tuning", title_justify="left")
    for column in ("epoch", "loss", "held back: loss", "right", "minutes"):
        table.add_column(column, justify="right")
    best = best_epoch(history)
    for e in history:
        loss = "" if e.epoch == 0 else f"{e.loss:.4f}"
        mark = " *" if e is best else ""
        table.add_row(f"{e.epoch}{mark}", loss, f"{e.held:.4f}", f"{e.top1:.2%}", f"{e.seconds / 60:.1f}")
    table.caption = "* taken"
    return table
