"""The order in which layers are fitted, where nodes share their weights."""

from __future__ import annotations

from zoo import Builder

from hmc_onnx.rewriting.order import repair_order
from passes.graph.model import Model


def model(*edges: str) -> Model:
    """Convs by name and the node that each reads, such as "b<a"; all that nothing reads are added up."""
    b = Builder()
    made: dict[str, str] = {"input": "input"}
    read = set()
    for edge in edges:
        name, source = edge.split("<")
        made[name] = b.conv(made[source], 3, 3, at=name)
        read.add(source)
    return Model(b.model(b.node("Sum", *(made[name] for name in made if name not in read))))


def test_layers_of_one_node_each_are_fitted_in_graph_order() -> None:
    graph = model("a<input", "b<a", "c<a", "d<b").graph
    layers = {name: [f"{name}/Conv"] for name in "abcd"}
    assert list(repair_order(graph, layers).items()) == list(layers.items())


def test_a_shared_layer_waits_for_what_is_before_its_later_nodes() -> None:
    graph = model("a<input", "s<a", "down<a", "t<down").graph
    order = repair_order(graph, {"a": ["a/Conv"], "s": ["s/Conv", "t/Conv"], "down": ["down/Conv"]})
    assert list(order) == ["a", "down", "s"]
    assert order["s"] == ["s/Conv", "t/Conv"]


def test_a_layer_that_is_before_itself_does_not_wait() -> None:
    graph = model("s<input", "between<s", "t<between").graph
    order = repair_order(graph, {"s": ["s/Conv", "t/Conv"], "between": ["between/Conv"]})
    assert order == {"s": ["s/Conv"], "between": ["between/Conv"]}
    assert list(order) == ["s", "between"]


def test_of_layers_that_wait_for_each_other_the_first_does_not() -> None:
    graph = model("a1<input", "b1<a1", "a2<b1", "b2<a2").graph
    order = repair_order(graph, {"a": ["a1/Conv", "a2/Conv"], "b": ["b1/Conv", "b2/Conv"]})
    assert list(order.items()) == [("a", ["a1/Conv"]), ("b", ["b1/Conv"])]
