"""Prune a network with Torch-Pruning (DepGraph) and re-estimate its batch norms; runs in the peers' environment.

    python with_torch_pruning.py MODEL.onnx IMAGES.npz SHARE OUT.onnx [--importance taylor]

The ONNX file becomes a torch module by onnx2torch. Channels go one step after the other, over all layers, until no more
than a share of the MACs is left. A file whose batch norms are folded gets one behind each Conv that changes nothing:
its statistics are those of the Conv's outputs on the images, its scale and shift their standard deviation and mean.
Behind the pruning the statistics of all batch norms are those of the pruned network on the same images.
"""

from __future__ import annotations

import argparse

import numpy as np
import onnx
import torch
import torch_pruning as tp
from onnx2torch import convert
from torch import Tensor, nn

# Steps on the way to the largest share of channels that may go.
STEPS, MOST = 200, 0.95
BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("images")
    parser.add_argument("share", type=float)
    parser.add_argument("out")
    parser.add_argument("--importance", choices=["magnitude", "taylor"], default="magnitude")
    args = parser.parse_args()
    proto = onnx.load(args.model)
    (images,) = (torch.from_numpy(x) for x in np.load(args.images).values())
    model = convert(proto).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    if not any(isinstance(m, nn.BatchNorm2d) for m in model.modules()):
        insert_batch_norms(model, images)
    prune(model, images, args.share, args.importance)
    estimate(model, images)
    names = {"input_names": [proto.graph.input[0].name], "output_names": [proto.graph.output[0].name]}
    axes = {name: {0: "batch"} for (name,) in names.values()}
    torch.onnx.export(model, (images[:1],), args.out, **names, dynamic_axes=axes, opset_version=17, dynamo=False)


def prune(model: nn.Module, images: Tensor, share: float, importance: str) -> None:
    """Remove channels until a share of the MACs is left."""
    example = images[:1]
    kept = [m for m in model.modules() if isinstance(m, nn.Linear)]
    kept += not_followed(model, example, kept)
    kinds = {"magnitude": tp.importance.GroupMagnitudeImportance, "taylor": tp.importance.GroupTaylorImportance}
    options = {"global_pruning": True, "pruning_ratio": MOST, "max_pruning_ratio": MOST, "round_to": 4}
    pruner = tp.pruner.BasePruner(
        model, example, importance=kinds[importance](), iterative_steps=STEPS, ignored_layers=kept, **options
    )
    before, _ = tp.utils.count_ops_and_params(model, example)
    for _ in range(STEPS):
        if importance == "taylor":
            gradients(model, images)
        pruner.step()
        after, _ = tp.utils.count_ops_and_params(model, example)
        if after <= share * before:
            return
    raise SystemExit(f"with {MOST:.0%} of the channels that it finds pruned, {after / before:.2f} of the MACs are left")


def not_followed(model: nn.Module, example: Tensor, heads: list[nn.Module]) -> list[nn.Module]:
    """Convs to keep, whose channels Torch-Pruning ties wrongly, as behind shortcuts that are padded with zeros."""
    graph = tp.DependencyGraph().build_dependency(model, example_inputs=example)
    importance, found = tp.importance.GroupMagnitudeImportance(), []
    for group in graph.get_all_groups(ignored_layers=heads, root_module_types=[nn.Conv2d]):
        try:
            importance(group)
        except (IndexError, RuntimeError):
            own = [dep.target.module for dep, _ in group if graph.is_out_channel_pruning_fn(dep.handler)]
            found += [module for module in own if isinstance(module, nn.Conv2d)]
    if found:
        print(f"{len(set(found))} Convs are kept, as it cannot follow their channels")
    return found


def gradients(model: nn.Module, images: Tensor) -> None:
    """Gradients of the cross-entropy with the network's own answers as labels, on some of the images."""
    model.zero_grad()
    for x in images[: 2 * BATCH].split(BATCH):
        answers = model(x)
        nn.functional.cross_entropy(answers, answers.detach().softmax(1).multinomial(1)[:, 0]).backward()


@torch.no_grad()
def insert_batch_norms(model: nn.Module, images: Tensor) -> None:
    """A batch norm behind each Conv, which changes nothing on the images."""
    convs = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    sums: dict[str, Tensor] = {name: torch.zeros(3, m.out_channels, dtype=torch.float64) for name, m in convs.items()}

    def hook(name: str) -> None:
        def add(_: nn.Module, __: tuple[Tensor, ...], y: Tensor) -> None:
            flat = y.transpose(0, 1).flatten(1).double()
            sums[name] += torch.stack([torch.full((len(flat),), flat.shape[1]), flat.sum(1), flat.square().sum(1)])

        handles.append(convs[name].register_forward_hook(add))

    handles: list[torch.utils.hooks.RemovableHandle] = []
    for name in convs:
        hook(name)
    for x in images.split(BATCH):
        model(x)
    for handle in handles:
        handle.remove()
    for name, conv in convs.items():
        count, total, squares = sums[name]
        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=0)
        norm = nn.BatchNorm2d(conv.out_channels).eval()
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.bias.copy_(mean)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, nn.Sequential(conv, norm))


@torch.no_grad()
def estimate(model: nn.Module, images: Tensor) -> None:
    """Set the statistics of all batch norms to those of the images."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    for x in images.split(BATCH):
        model(x)
    model.eval()


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
