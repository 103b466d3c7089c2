"""The integer program: one choice for each group and layer, with the least total sensitivity within the budget.

The binary variable x[g, a] says that group g takes choice a, and z[l, c] that layer l takes choice c. A layer's choice
c also names the choices of its input and output group, so

    Σ_c z[l, c] = 1,   Σ_{c: inputs(c) = a} z[l, c] = x[input group of l, a],   likewise for outputs,

and the MACs of every layer are exact for every combination. Sensitivities are added, because the squares of small,
uncorrelated errors add up, and the KL divergence is quadratic in the errors. The errors of removed residual branches of
one stage are correlated: what they lose beside their sum is a further variable for each stage
(`hmc_onnx/planning/joint_loss.py`). A strategy restricts the choices of the same program.

In a network that is served in INT8, a layer's choice may also leave it in float32. It costs the seconds of that, with
the casts around the layer, and saves the nats that rounding loses. Such choices are for a bound on the latency alone.

A choice that changes something costs at least `LEAST`. So among plans of equal sensitivity the one with fewer changes
wins, and nothing is changed if the unchanged network meets the target.

HiGHS (`scipy.optimize.milp`) solves the program to a relative gap of `OPTIMAL_GAP`. Its effort is limited by the number
of nodes of the search tree, and not by time, so the same profile and target always give the same plan. If the limit
stops the search, the gap is larger, and the plan records it.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from hmc_onnx.planning.joint_loss import JointLoss
from hmc_onnx.planning.solution import plan_of
from hmc_onnx.planning.spared_stdout import spared_stdout
from hmc_onnx.planning.strategies import allowed
from hmc_onnx.planning.taken import LEAST, place, takings, undominated
from hmc_onnx.records.goal import Strategy, Target, Unreachable, parse_target
from hmc_onnx.records.plan import OPTIMAL_GAP, Plan
from hmc_onnx.records.profile import Profile
from hmc_onnx.records.selection import ALL, LayerSelection
from passes.core.arguments import check_one_of, check_type
from passes.core.errors import HmcError, PlanError, SettingsError

__all__ = ["Program", "solve", "unreachable"]

# The costs that may be bounded, and the fields of a target that bound them.
NAMES = {"seconds": "latency", "macs": "macs", "parameters": "params"}
# Upper bound on the nodes of the search tree, after which the best plan so far is used; a ResNet-56 takes some tens.
MOST_NODES = 20_000
# HiGHS stops at this gap, too, as a share of the largest loss of a choice (its `mip_abs_gap`). It is negligible.
ABSOLUTE_GAP = 1e-6
# Relative rounding error of the original's costs when they are summed in another order.
ROUNDING = 1e-9


def solve(profile: Profile, target: Target | str, strategy: Strategy = "hmc") -> Plan:
    """The plan of least total sensitivity.

    Args:
        profile: what each candidate costs and loses.
        target: see `Target`; or text, such as "macs=0.5".
        strategy: which choices are allowed.

    Raises:
        SettingsError: no combination of candidates meets the target.
    """
    check_type(profile, Profile, "the profile", "give hmc_onnx.Profile.load(path)", PlanError)
    check_one_of(strategy, Strategy, "strategy")
    return Program(profile, strategy).solve(parse_target(target) if isinstance(target, str) else target)


def unreachable(
    target: Target, strategy: Strategy, least: Target, align: int, selection: LayerSelection
) -> Unreachable:
    """The error for a target that a strategy cannot reach, given the least possible value of each bound."""
    aligned = f", give an `align` below {align}" if align > 1 else ""
    again = (
        "; if the machine was busy when it was timed, have it timed again "
        "('hmc-onnx latency clear', and another `work_dir` or `latency_table` where one was given)"
        if least.latency is not None
        else ""
    )
    possible = " or ".join(f"{name}={share:.3f}" for name, share in least if share is not None)
    model = "this model" if selection == ALL else "the layers that `keep` and `only` leave to it"
    return Unreachable(
        f"target {target} is below what strategy '{strategy}' can reach on {model}, "
        f"{possible}: keep more{aligned} or give `or_nearest`{again}",
        least,
    )


class Program:
    """The choices that a strategy allows on a profile, their costs, and the constraints that tie them together.

    A solution is a 0/1 vector with an entry for each choice, first those of the groups and then those of the layers.
    The program's variables are these, and then the joint loss of each stage.

    Args:
        profile: the profile.
        strategy: which choices are allowed.
    """

    def __init__(self, profile: Profile, strategy: Strategy = "hmc") -> None:
        self.profile, self.strategy = profile, strategy
        permits = allowed(profile, strategy)
        self.original = {"macs": float(profile.macs), "parameters": float(profile.parameters)}
        if profile.latency is not None:
            self.original["seconds"] = profile.latency.seconds
        self.layers = [
            taken
            for layer in profile.layers
            for taken in undominated([t for t in takings(layer) if permits(layer, t.choice)], list(self.original))
        ]
        self.groups = [(g, a) for g in profile.groups for a in range(len(g.choices))]
        self.count = len(self.groups) + len(self.layers)
        zeros = [0.0] * len(self.groups)
        self.sensitivity = np.array(
            [g.choices[a].sensitivity for g, a in self.groups] + [t.sensitivity for t in self.layers]
        )
        self.unchanged = np.array(
            [a == 0 for _, a in self.groups] + [t.unchanged for t in self.layers],
            float,
        )
        self.loss = np.array(
            [max(g.choices[a].sensitivity, LEAST) if a > 0 else g.choices[a].sensitivity for g, a in self.groups]
            + [t.loss for t in self.layers]
        )
        self.cost = {k: np.array(zeros + [t.cost(k) for t in self.layers]) for k in self.original}
        self.in_float = np.array(zeros + [t.in_float for t in self.layers], bool)
        removes = [g.choices[a].removes_branch for g, a in self.groups]
        self.removes = np.array(removes + [False] * len(self.layers), float)
        at_rest = dict(self.original)  # costs of the unchanged network, in the precision of deployment
        if profile.latency is not None and profile.latency.unchanged is not None:
            at_rest["seconds"] = profile.latency.unchanged
        self.at_rest = at_rest
        self.fixed = {k: v - sum(getattr(layer, k) or 0 for layer in profile.layers) for k, v in at_rest.items()}
        if self.fixed.get("seconds", 0.0) < 0:  # the layers take longer alone than together
            self.cost["seconds"] *= at_rest["seconds"] / (at_rest["seconds"] - self.fixed["seconds"])
            self.fixed["seconds"] = 0.0
        self.joint = [JointLoss.of(stage, self.groups, self.count) for stage in profile.stages]
        self.variables = self.count + len(self.joint)
        self.constraints = [self._choice_constraints(profile)]
        self.unit = max(float(self.loss.max(initial=0.0)), LEAST)  # in nats, of the further variables
        self.constraints += [
            joint.bound(self.count + i, self.variables, self.unit) for i, joint in enumerate(self.joint)
        ]

    def lost(self, solution: np.ndarray) -> float:
        """What a solution loses, in nats: the sum of its sensitivities, and what branches of a stage lose beside it."""
        return float(self.sensitivity @ solution) + sum(joint.beside_sum(solution) for joint in self.joint)

    def _choice_constraints(self, profile: Profile) -> LinearConstraint:
        rows: dict[tuple, int] = {}
        entries: list[tuple[int, int, float]] = []
        right: list[float] = []

        def row(key: tuple, value: float) -> int:
            if key not in rows:
                rows[key] = len(rows)
                right.append(value)
            return rows[key]

        for j, (group, _) in enumerate(self.groups):
            entries.append((row(("group", group.name), 1.0), j, 1.0))
        choices = {g.name: len(g.choices) for g in profile.groups}
        column = {(g.name, a): j for j, (g, a) in enumerate(self.groups)}
        for layer in profile.layers:
            for side, name in (("inputs", layer.input_group), ("outputs", layer.output_group)):
                if name is not None:
                    for a in range(choices[name]):
                        entries.append((row((layer.name, side, a), 0.0), column[name, a], -1.0))
        for j, (layer, c, _) in enumerate(self.layers, start=len(self.groups)):
            entries.append((row(("layer", layer.name), 1.0), j, 1.0))
            if layer.input_group is not None:
                entries.append((row((layer.name, "inputs", c.inputs), 0.0), j, 1.0))
            if layer.output_group is not None:
                entries.append((row((layer.name, "outputs", c.outputs), 0.0), j, 1.0))
        at, of, value = zip(*entries, strict=True)
        matrix = coo_array((value, (at, of)), shape=(len(rows), self.variables)).tocsr()
        return LinearConstraint(matrix, right, right)

    def solve(self, target: Target, correction: float = 1.0, branches: int | None = None) -> Plan:
        """The plan of least total sensitivity.

        Args:
            target: see `Target`; for a bound on the latency, the profile must have latencies.
            correction: factor on the bound on the latency; below 1 if networks of the planned shapes were measured to
                be slower than the sum of their layers' times.
            branches: number of residual branches to remove; None: as many as lose least by the sum.

        Raises:
            SettingsError: no combination of candidates meets the target; the message says what is possible.
        """
        profile = self.profile
        shares = {"seconds": target.latency, "macs": target.macs, "parameters": target.params}
        bounds = {k: v for k, v in shares.items() if v is not None}
        if not bounds:
            raise SettingsError("the target bounds nothing: give latency=…, macs=… or params=…")
        if "seconds" in bounds:
            if profile.latency is None:
                raise SettingsError(
                    "the profile has no latencies: profile again with `latency=True`, or give another target"
                )
            bounds["seconds"] *= correction
        can_stay = self.unchanged.sum() == len(profile.groups) + len(profile.layers)
        if (
            can_stay
            and not branches
            and all(self.spent(k, self.unchanged) <= v * self.original[k] * (1 + ROUNDING) for k, v in bounds.items())
        ):
            return plan_of(self, self.unchanged, target, 0.0)
        limits = {k: v * self.original[k] for k, v in bounds.items()}
        loss = np.append(self.loss, [self.unit] * len(self.joint))
        solution, gap = self._minimise(loss, limits, "seconds" in bounds, branches)
        if solution is None:
            raise self._unreachable(target, {k: correction if k == "seconds" else 1.0 for k in bounds})
        return plan_of(self, self._spared(solution, limits), target, gap)

    @property
    def unchanged_share(self) -> float:
        """The time of the network without changes, in the precision that is served, as a share of the original's."""
        return self.at_rest["seconds"] / self.original["seconds"]

    def check_within_reach(self, target: Target) -> None:
        """Check that some combination of candidates meets the bounds on MACs and parameters, whatever it loses.

        Raises:
            SettingsError: none does; the message says what is possible.
        """
        limits = {k: v * self.original[k] for k, v in (("macs", target.macs), ("parameters", target.params)) if v}
        if limits and self._minimise(np.zeros(self.count), limits)[0] is None:
            raise self._unreachable(target, dict.fromkeys(limits, 1.0))

    def _spared(self, solution: np.ndarray, limits: dict[str, float]) -> np.ndarray:
        """The solution without unneeded decompositions: those without measured loss that no limit requires.

        The solver is indifferent to them, but they may cost accuracy on images other than the calibration images.
        """
        solution = solution.copy()
        columns = list(enumerate(self.layers, start=len(self.groups)))
        kept = {place(t): j for j, t in columns if not t.decomposes}
        for j, taken in columns:
            other = kept.get(place(taken))
            if not solution[j] or not taken.decomposes or taken.sensitivity > LEAST or other is None:
                continue
            solution[j], solution[other] = 0, 1
            if any(self.spent(k, solution) > limit for k, limit in limits.items()):
                solution[j], solution[other] = 1, 0
        return solution

    def _unreachable(self, target: Target, corrections: dict[str, float]) -> Unreachable:
        """The error for a target out of reach; its message gives the least possible value of each bound."""
        possible = {}
        for k, correction in corrections.items():
            least, _ = self._minimise(self.cost[k], {}, k == "seconds")
            assert least is not None
            least_share = self.spent(k, least) / self.original[k] / correction
            possible[NAMES[k]] = min(math.ceil(least_share * 1000) / 1000, 1.0)  # rounded up, to be feasible
        return unreachable(
            target, self.strategy, Target(**possible), self.profile.align, self.profile.settings.selection
        )

    def _minimise(
        self, objective: np.ndarray, limits: dict[str, float], in_float: bool = False, branches: int | None = None
    ) -> tuple[np.ndarray | None, float]:
        """The best solution (None if the limits allow none), and the proven relative gap to the optimum.

        Args:
            objective: of each choice, (choices,), or of each variable, (variables,).
            limits: upper bounds on costs.
            in_float: whether layers may stay in float32 in a network that is served in INT8.
            branches: number of residual branches to remove; None: any.
        """
        constraints = list(self.constraints)
        if branches is not None:
            constraints.append(LinearConstraint(self._row(self.removes), branches, branches))
        for k, limit in limits.items():
            scale = max(abs(limit), 1e-12) / 1e4  # HiGHS's tolerance is 1e-6, absolute: limits hold to ten digits
            constraints.append(
                LinearConstraint(self._row(self.cost[k]) / scale, -np.inf, (limit - self.fixed[k]) / scale)
            )
        scaled = self._row(objective)[0] / max(float(np.abs(objective).max(initial=0.0)), 1e-300)
        most = np.where(self.in_float, float(in_float), 1.0)
        with spared_stdout():  # HiGHS 1.12 prints a line of its own now and then
            result = milp(
                scaled,
                integrality=np.arange(self.variables) < self.count,
                bounds=Bounds(0, np.append(most, [np.inf] * len(self.joint))),
                constraints=constraints,
                options={"mip_rel_gap": OPTIMAL_GAP, "node_limit": MOST_NODES},
            )
        if result.x is None:
            if result.status == 2:
                return None, 0.0
            raise HmcError(
                f"the solver found no plan within {MOST_NODES:,} nodes of its search ({result.message}): give another "
                "target, or `quick` for fewer candidates"
            )
        # no loss is negative, so 0 is a lower bound where the search was stopped before it had another
        gap = min(float(result.mip_gap), 1.0)
        return np.round(result.x[: self.count]), gap if gap * result.fun > ABSOLUTE_GAP else 0.0

    def _row(self, values: np.ndarray) -> np.ndarray:
        """Values of the choices, or of all variables, as a row (1, variables)."""
        return np.pad(values, (0, self.variables - len(values)))[None]

    def spent(self, what: str, solution: np.ndarray) -> float:
        """Seconds, MACs or parameters of the whole network for a solution.

        A choice counts all biases of its layer, which has its own after a change. In the original, layers may share
        them.
        """
        if np.array_equal(solution, self.unchanged):
            return self.at_rest[what]
        return float(self.cost[what] @ solution) + self.fixed[what]
