"""Writes the skeletons in `exports/`: ResNets as torch's two ONNX exporters write them, without their weights.

The tests read what exporters really write (with their names, folded BatchNorms, chains of Shape and Gather), and yet
need no torch, nor megabytes of weights: those are dropped here, and `exported.py` draws new ones. The topologies are
those of torchvision (7x7 stem, 3x64x64 images) and of the CIFAR ResNets (3x3 stem, 3x16x16 images), made narrow so
that tests are fast. Run as `python tests/data/make_exports.py [TOPOLOGY ...]`; needs torch and onnxscript. Left out:

    topology   exporter     opset  why
    resnet*a   torchscript  9      torch refuses slices with a step before opset 10
"""

from __future__ import annotations

import gzip
import io
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import onnx
import torch
import torch.nn.functional as F
from onnx import TensorProto
from torch import Tensor, nn

FOLDER = Path(__file__).parent / "exports"
KEPT = 64  # float tensors of more elements lose their data
UNFUSED = ("resnet50", "resnet20a", "preresnet18", "seresnet50")

conv = partial(nn.Conv2d, bias=False)
conv3x3 = partial(conv, kernel_size=3, padding=1)


class LinearSE(nn.Module):
    """Squeeze-and-excitation as in the SENet PyTorch port: linear layers, a view back to four axes, expand_as."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        down, up = nn.Linear(channels, inner, bias=False), nn.Linear(inner, channels, bias=False)
        self.fc = nn.Sequential(down, nn.ReLU(inplace=True), up, nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        y = self.avg_pool(x).view(b, c)
        y = self.fc(y).view(b, c, 1, 1)
        return x * y.expand_as(x)


class ConvSE(nn.Module):
    """Squeeze-and-excitation of 1x1 convolutions, as in torchvision."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.fc2(F.relu(self.fc1(self.avgpool(x))))) * x


class Block(nn.Module):
    """Two 3x3 convolutions, or with `expansion` 4 the bottleneck 1x1, 3x3, 1x1; names and order as in torchvision.

    The stride is on the first 3x3 (v1.5); `v1` puts it on the first 1x1, as He et al. did in Caffe. `scale`
    multiplies the inner width, as in wide ResNets and ResNeXt. `se` comes after the last BN.
    """

    pre = False

    def __init__(
        self,
        inputs: int,
        width: int,
        stride: int,
        expansion: int = 1,
        v1: bool = False,
        scale: int = 1,
        groups: int = 1,
        se: Callable[[int, int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.outputs, inner = expansion * width, scale * width
        if expansion == 1:
            convs = [conv3x3(inputs, inner, stride=stride), conv3x3(inner, inner)]
        else:
            first, second = (stride, 1) if v1 else (1, stride)
            middle = conv3x3(inner, inner, stride=second, groups=groups)
            convs = [conv(inputs, inner, 1, first), middle, conv(inner, self.outputs, 1)]
        for index, layer in enumerate(convs, 1):
            self.add_module(f"conv{index}", layer)
            self.add_module(f"bn{index}", nn.BatchNorm2d(layer.in_channels if self.pre else layer.out_channels))
        self.convs = len(convs)
        self.relu = nn.ReLU(inplace=True)
        self.se = se(self.outputs, self.outputs // 4) if se else nn.Identity()
        self.downsample = None
        if stride != 1 or inputs != self.outputs:
            projection = conv(inputs, self.outputs, 1, stride)
            self.downsample = projection if self.pre else nn.Sequential(projection, nn.BatchNorm2d(self.outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for index in range(1, self.convs + 1):
            out = self.get_submodule(f"bn{index}")(self.get_submodule(f"conv{index}")(out))
            out = self.relu(out) if index < self.convs else self.se(out)
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class PreAct(Block):
    """BN, ReLU, convolution (He et al. 2016b); a projection reads what the first ReLU gives, and has no BN."""

    pre = True

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(x))
        shortcut = x if self.downsample is None else self.downsample(out)
        out = self.conv1(out)
        for index in range(2, self.convs + 1):
            out = self.get_submodule(f"conv{index}")(self.relu(self.get_submodule(f"bn{index}")(out)))
        return out + shortcut


class LambdaLayer(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.lambd = function

    def forward(self, x: Tensor) -> Tensor:
        return self.lambd(x)


class Cifar(nn.Module):
    """The basic block of akamaster/pytorch_resnet_cifar10, with the shortcuts A, B and C of He et al."""

    def __init__(self, inputs: int, width: int, stride: int, option: str) -> None:
        super().__init__()
        self.outputs = width
        self.conv1, self.bn1 = conv3x3(inputs, width, stride=stride), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv3x3(width, width), nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        changes = stride != 1 or inputs != width
        if option == "c" or (option == "b" and changes):
            self.shortcut = nn.Sequential(conv(inputs, width, 1, stride), nn.BatchNorm2d(width))
        elif changes:
            pads = (0, 0, 0, 0, width // 4, width // 4)
            self.shortcut = LambdaLayer(lambda x: F.pad(x[:, :, ::2, ::2], pads, "constant", 0))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return F.relu(out)


class ResNet(nn.Module):
    """Stem, stages and head; `head` is how the pooled features come to two axes: "flatten", "view" or "mean"."""

    def __init__(self, block: Callable[..., nn.Module], depths: tuple[int, ...], head: str = "flatten") -> None:
        super().__init__()
        kind = block.func if isinstance(block, partial) else block
        self.pre, cifar, self.head = kind is PreAct, kind is Cifar, head
        self.image = torch.zeros(2, 3, 16, 16) if cifar else torch.zeros(2, 3, 64, 64)
        self.conv1 = conv3x3(3, 8) if cifar else conv(3, 8, 7, 2, padding=3)
        self.maxpool = nn.Identity() if cifar else nn.MaxPool2d(3, 2, padding=1)
        inputs, self.stages = 8, len(depths)
        for stage, depth in enumerate(depths):
            layer = nn.Sequential()
            for index in range(depth):
                layer.append(block(inputs, 8 << stage, 2 if stage and not index else 1))
                inputs = layer[-1].outputs
            self.add_module(f"layer{stage + 1}", layer)
        self.bn1 = nn.BatchNorm2d(inputs if self.pre else 8)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = self.maxpool(x if self.pre else F.relu(self.bn1(x)))
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        if self.pre:
            x = F.relu(self.bn1(x))
        if self.head == "mean":
            return self.fc(x.mean([2, 3]))
        if self.head == "view":
            x = F.avg_pool2d(x, x.size()[3])
            return self.fc(x.view(x.size(0), -1))
        return self.fc(torch.flatten(self.avgpool(x), 1))


bottleneck = partial(Block, expansion=4)
TOPOLOGIES: dict[str, Callable[[], ResNet]] = {
    "resnet18": partial(ResNet, Block, (2, 2, 2, 2)),
    "resnet34": partial(ResNet, Block, (3, 4, 6, 3)),
    "resnet50": partial(ResNet, bottleneck, (3, 4, 6, 3)),
    "resnet101": partial(ResNet, bottleneck, (3, 4, 23, 3)),
    "resnet152": partial(ResNet, bottleneck, (3, 8, 36, 3)),
    "resnet50_v1": partial(ResNet, partial(bottleneck, v1=True), (3, 4, 6, 3)),
    "wide_resnet50_2": partial(ResNet, partial(bottleneck, scale=2), (3, 4, 6, 3)),
    # resnext50_32x4d, of 8 groups for its 32: 4 channels each in stage 1, and twice as many in each stage after
    "resnext50": partial(ResNet, partial(bottleneck, scale=4, groups=8), (3, 4, 6, 3)),
    "preresnet18": partial(ResNet, PreAct, (2, 2, 2, 2)),
    "preresnet50": partial(ResNet, partial(PreAct, expansion=4), (3, 4, 6, 3)),
    "seresnet18": partial(ResNet, partial(Block, se=ConvSE), (2, 2, 2, 2)),
    "seresnet50": partial(ResNet, partial(bottleneck, se=LinearSE), (3, 4, 6, 3)),
    **{
        f"resnet{depth}{option}": partial(ResNet, partial(Cifar, option=option), ((depth - 2) // 6,) * 3, head)
        for depth in (20, 32, 44, 56, 110)
        for option, head in (("a", "view"), ("b", "flatten"), ("c", "mean"))
    },
}


def build(topology: str) -> ResNet:
    """The model, with weights that do not look alike: exporters share equal tensors, as untrained BatchNorms have."""
    torch.manual_seed(0)
    model = TOPOLOGIES[topology]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight, std=0.7 * math.sqrt(2 / module.weight[0].numel()))
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.05)
    return model.eval()


def torchscript(model: ResNet, opset: int, fuse: bool = True) -> onnx.ModelProto:
    """What the TorchScript exporter writes; without `fuse` the BatchNormalization nodes stay."""
    mode = torch.onnx.TrainingMode.EVAL if fuse else torch.onnx.TrainingMode.PRESERVE
    axes, buffer = {"input": {0: "batch"}, "output": {0: "batch"}}, io.BytesIO()
    options = {"input_names": ["input"], "output_names": ["output"], "do_constant_folding": fuse, "training": mode}
    torch.onnx.export(model, (model.image,), buffer, opset_version=opset, dynamo=False, dynamic_axes=axes, **options)
    return onnx.load_from_string(buffer.getvalue())


def dynamo(model: ResNet, opset: int) -> onnx.ModelProto:
    """What the dynamo exporter writes."""
    options = {"dynamo": True, "dynamic_shapes": ({0: "batch"},), "verbose": False}
    return torch.onnx.export(model, (model.image,), opset_version=opset, **options).model_proto


def exports(topology: str) -> Iterator[tuple[str, onnx.ModelProto]]:
    """The exports of one topology, each with the name of its file."""
    for opset in (9, 13, 20):
        if opset > 9 or not topology.endswith("a"):
            yield f"{topology}-torchscript-{opset}", torchscript(build(topology), opset)
    if topology in UNFUSED:
        yield f"{topology}-torchscript-17-bn", torchscript(build(topology), 17, fuse=False)
    for opset in (18, 23):
        yield f"{topology}-dynamo-{opset}", dynamo(build(topology), opset)


def skeleton(model: onnx.ModelProto) -> bytes:
    """The model without the data of its larger float tensors, and without stack traces: they name files."""
    constants = [a.t for node in model.graph.node if node.op_type == "Constant" for a in node.attribute]
    for tensor in [*model.graph.initializer, *constants]:
        if tensor.data_type == TensorProto.FLOAT and math.prod(tensor.dims) > KEPT:
            tensor.ClearField("raw_data")
            tensor.ClearField("float_data")
    for node in model.graph.node:
        node.ClearField("doc_string")
        properties = [entry for entry in node.metadata_props if not entry.key.endswith("stack_trace")]
        del node.metadata_props[:]
        node.metadata_props.extend(properties)
    data = model.SerializeToString(deterministic=True)
    assert b".py" not in data, "a path is left"
    return gzip.compress(data, mtime=0)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    FOLDER.mkdir(exist_ok=True)
    for chosen in sys.argv[1:] or TOPOLOGIES:
        for name, proto in exports(chosen):
            (FOLDER / f"{name}.onnx.gz").write_bytes(skeleton(proto))
            print(name)
